"""Where things are: what the demonstrations tell, and the two losses by which the glimpses learn to find them.

Labels in training, never an input. A thing may be told in the world (``red_cube.x``: metres) and in the picture of a
camera (``red_cube.front.u`` and ``.v``: -1 to 1 from the left, upper edge to the right, lower one).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from moe_robot.moe import at_least_float32

PICTURE_AXES = ("u", "v")
STRIDE = 4
"""Pixels between two places of a camera's feature map."""


@dataclass(frozen=True)
class PlaceNames:
    """What the numbers of an ``environment_state`` are about.

    Attributes:
        things: each once, in their order.
        world: indices of the numbers that are not of a picture.
        pictures: camera -> for each thing, indices of its u and v; (-1, -1) where they are not told.
    """

    things: tuple[str, ...]
    world: tuple[int, ...]
    pictures: Mapping[str, tuple[tuple[int, int], ...]]

    @classmethod
    def of(cls, names: Sequence[str], cameras: Iterable[str]) -> PlaceNames:
        """Sort ``names`` by what they tell. Pictures of other cameras are left out."""
        parts = [name.rpartition(".") for name in names]
        things = dict.fromkeys(thing_of(name) for name in names)
        in_picture = [axis in PICTURE_AXES and thing.rpartition(".")[0] in things for thing, _, axis in parts]
        world = tuple(i for i, elsewhere in enumerate(in_picture) if not elsewhere)
        things = tuple(dict.fromkeys(thing_of(names[i]) for i in world))
        at = {name: i for i, name in enumerate(names)}
        pictures = {}
        for camera in cameras:
            pairs = tuple(tuple(at.get(f"{thing}.{camera}.{axis}", -1) for axis in PICTURE_AXES) for thing in things)
            if any(min(pair) >= 0 for pair in pairs):
                pictures[camera] = pairs
        return cls(things, world, pictures)


class Places(nn.Module):
    """Tells where things are in the world from what the cameras found of them.

    Args:
        names: one per number to tell, ``thing.entry``.
        width: of all cameras' finds of one thing, together with the state that goes with them.
    """

    def __init__(self, names: Sequence[str], width: int, hidden: int = 64) -> None:
        super().__init__()
        things = tuple(dict.fromkeys(map(thing_of, names)))
        entries = {thing: [i for i, name in enumerate(names) if thing_of(name) == thing] for thing in things}
        n = max(len(of) for of in entries.values())
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, n))
        self.offset = nn.Parameter(torch.zeros(len(things), n))
        at = {i: t * n + k for t, thing in enumerate(things) for k, i in enumerate(entries[thing])}
        self.order: Tensor
        self.register_buffer("order", torch.tensor([at[i] for i in range(len(names))]), persistent=False)

    def forward(self, finds_BTR: Tensor) -> Tensor:
        """(B, things, width) -> (B, len(names)), normalised."""
        return (self.layers(finds_BTR) + self.offset).flatten(1)[:, self.order]


def in_picture(told_BN: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """bool (B, things that are told of): which appear in one camera's picture; see :func:`picture_loss`."""
    return (_told_uv(told_BN, pairs).abs() <= 1).all(dim=-1)


def _told_uv(told_BN: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Where the things that are told of appear, (B, told things, 2) in [-1, 1] where the picture is."""
    return told_BN[:, torch.tensor([pair for pair in pairs if min(pair) >= 0], device=told_BN.device)].float()


def picture_loss(scores_BTHW: Tensor, told_BN: Tensor, pairs: Sequence[tuple[int, int]], weight_BT: Tensor) -> Tensor:
    """Cross-entropy between where one camera's search looked and where the things appear, over those in its picture.

    The label's weight is shared by the four places around it. Without this loss a search has to become narrow by itself
    before its mean says anything, and with some training seeds it does not.

    Args:
        scores_BTHW: of the search, before the softmax over places (B, T, H, W).
        told_BN: the ``environment_state``, as recorded.
        pairs: for each thing, where in it u and v are.
        weight_BT: of each thing that is told of in each sample, 0 where it is not :func:`in_picture`.
    """
    h, w = scores_BTHW.shape[-2:]
    told = [t for t, pair in enumerate(pairs) if min(pair) >= 0]
    uv_BT2 = _told_uv(told_BN, pairs)
    size_2 = torch.tensor([w, h], device=uv_BT2.device)
    at_BT2 = ((uv_BT2 + 1) / 2 * size_2 - 0.5 / STRIDE).clamp(min=0).minimum(size_2 - 1.001)  # place 0 is at pixel 0
    corner_BT2, rest_BT2 = at_BT2.long(), at_BT2.frac()
    log_BTP = at_least_float32(scores_BTHW[:, told]).flatten(2).log_softmax(dim=-1)
    hit_BT = torch.zeros_like(rest_BT2[..., 0])
    for right, down in product((0, 1), (0, 1)):
        across_BT, along_BT = (rest_BT2[..., k] if far else 1 - rest_BT2[..., k] for k, far in enumerate((right, down)))
        place_BT = (corner_BT2[..., 1] + down) * w + corner_BT2[..., 0] + right
        hit_BT = hit_BT + across_BT * along_BT * log_BTP.gather(-1, place_BT.unsqueeze(-1)).squeeze(-1)
    return -(hit_BT * weight_BT).sum()


def thing_of(name: str) -> str:
    """``red_cube`` of ``red_cube.x``."""
    return name.rpartition(".")[0] or name
