"""One page of configuration: everything that shapes the policy, each field with its meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moe_robot.registry import unknown
from moe_robot.types import UserError

MODALITIES = ("vision", "arm", "grasp", "language")


@dataclass(frozen=True)
class PolicyConfig:
    """The shape of a multimodal policy. Saved as JSON in the checkpoint; an unknown key is refused."""

    preset: str = "moe"
    """Name of the preset this came from, for reports."""
    width: int = 128
    """Width of every token."""
    layers: int = 2
    """Trunk blocks, each attention then feed-forward; at least 2, since the glimpses come after the first."""
    heads: int = 4
    """Attention heads."""
    feed_forward: Literal["moe", "dense-active"] = "moe"
    """Experts behind a gate, or one dense network with the FLOPs of the experts that a token wakes."""
    experts: Mapping[str, int] = field(default_factory=lambda: {"vision": 3, "arm": 2, "grasp": 1, "language": 2})
    """Role -> number of experts per block (feed_forward "moe")."""
    experts_per_token: int = 2
    """How many experts a token wakes."""
    hidden: int = 128
    """Hidden width of one expert; the dense network is experts_per_token times as wide."""
    gate_prior: float = 1.0
    """Bonus in logits with which each modality starts at the experts of its own role; learned from there on."""
    gate_learned: bool = True
    """False freezes the gate at its random start."""
    balance_weight: float = 0.02
    """Weight of the load-balance loss."""
    z_weight: float = 0.0
    """Weight of the router z-loss. Its cheapest way to smaller logits is to empty the gate's starting bonus, and with
    1e-3 all camera tokens left the vision experts within 1,100 steps; the float32 gate was stable without it."""
    task_weight: float = 0.1
    """Weight of telling the task's name from the words, in training: it ties synonyms together early."""
    task_names: tuple[str, ...] = ()
    """The names to tell, from the demonstrations; empty leaves that loss out."""
    ignore_state: tuple[str, ...] = ("*.vel",)
    """State entries that the policy does not read, as shell patterns of their names. Velocities tell where the
    demonstrator was going: a policy that reads them copies the motion and does not look for the goal (the copycat
    problem, Wen et al. 2020)."""
    places_weight: float = 1.0
    """Weight of telling where things are, in training: it teaches the glimpses to find them."""
    places: tuple[str, ...] = ()
    """The names of those places, such as "red_cube.x", from demonstrations that recorded them; empty leaves that loss
    out. The part before the last dot is the thing."""
    stem_channels: int = 32
    """Channels of the camera stem's feature map."""
    patches: int = 4
    """The feature map is pooled to patches x patches tokens per camera."""
    glimpses: int = 4
    """Tokens per camera read from the fine feature map, half of them where the instruction points."""
    text: str = "scratch"
    """Text encoder: "scratch", "bundled:minilm", a local directory, a hub id, or "none" (cannot read)."""
    head: Literal["l1", "flow"] = "l1"
    """Action head: L1 regression of the chunk, or flow matching."""
    chunk: int = 8
    """H, control steps predicted at once."""
    execute: int = 2
    """Control steps executed of each chunk before the network runs again."""
    shift: int = 2
    """Random image shift in training, in pixels at 96; 0 for none."""
    jitter: float = 0.1
    """Random brightness and contrast in training, as a fraction; 0 for none."""

    def __post_init__(self) -> None:
        for name, low in (("width", 8), ("layers", 2), ("heads", 1), ("chunk", 1), ("execute", 1), ("patches", 1)):
            if getattr(self, name) < low:
                raise UserError(f"policy config: {name} is {getattr(self, name)}, expected at least {low}")
        if self.execute > self.chunk:
            raise UserError(f"policy config: execute is {self.execute}, expected at most the chunk of {self.chunk}")
        if self.width % self.heads:
            raise UserError(f"policy config: width {self.width} is no multiple of heads {self.heads}")
        for name, choices in (("feed_forward", ("moe", "dense-active")), ("head", ("l1", "flow"))):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        for role, n in self.experts.items():
            if role not in MODALITIES:
                raise unknown("expert role", role, MODALITIES)
            if n < 0:
                raise UserError(f"policy config: experts.{role} is {n}, expected 0 or more")
        if self.feed_forward == "moe" and not 1 <= self.experts_per_token <= sum(self.experts.values()):
            raise UserError(
                f"policy config: experts_per_token is {self.experts_per_token}, "
                f"expected 1 to {sum(self.experts.values())} (the number of experts)"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict for ``config.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """The inverse of :meth:`to_json`; an unknown key is refused with the nearest valid one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in data:
            if key not in known:
                raise unknown("policy config key", key, known)
        lists = {key: tuple(data[key]) for key in ("task_names", "ignore_state", "places") if key in data}
        return cls(**{**data, **lists})
