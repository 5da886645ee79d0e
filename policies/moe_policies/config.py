"""One page of configuration: everything that shapes the policy, each field with its meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from moe_policies.bundled import SCRATCH
from moe_robot.registry import unknown
from moe_robot.types import UserError

MODALITIES = ("vision", "arm", "grasp", "language")

FeedForwardKind = Literal["moe", "dense-active", "dense-total"]
GateKind = Literal["learned", "random", "typed"]
GateChoice = Literal["token", "expert"]
RoutingUnit = Literal["token", "segment", "instruction"]
BalanceGroups = Literal["role", "all"]
Activation = Literal["swiglu", "geglu", "relu"]
ExpertKind = Literal["mlp", "convolution", "attention"]
Search = Literal["things", "sentence"]
Normalisation = Literal["mean_std", "min_max", "quantile", "none"]
Head = Literal["l1", "flow", "mixture1991"]
CHOICES = {
    "feed_forward": FeedForwardKind, "gate": GateKind, "gate_choice": GateChoice, "routing_unit": RoutingUnit,
    "balance_groups": BalanceGroups, "activation": Activation, "search": Search, "head": Head,
}  # fmt: skip


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

    normalisation: Mapping[str, str] = field(default_factory=dict)
    """What of -> how its values are brought to a common size: mean_std (default), min_max or quantile (the middle 98 %)
    to -1..1, or none. What of: images, state, action, places, or one camera by its name. A frozen vision encoder takes
    its images as they are: none is then the only way for them."""

    # --- the feed-forward layers
    feed_forward: FeedForwardKind = "moe"
    """Experts behind a gate, or one dense network: with the FLOPs of the experts that a token wakes (dense-active), or
    with the parameters of all of them (dense-total)."""
    experts: Mapping[str, int] = field(default_factory=lambda: {"vision": 3, "arm": 2, "grasp": 1, "language": 2})
    """Role -> number of experts per layer."""
    experts_per_token: int = 2
    """K, how many experts a token wakes. As many as there are: the dense mixture of 1991, all run."""
    hidden: int = 128
    """Hidden width of one expert."""
    activation: Activation = "swiglu"
    """Of the feed-forward networks: SiLU-gated, GELU-gated (GLaM) or plain ReLU (Switch)."""
    expert_kinds: Mapping[str, str] = field(default_factory=dict)
    """Role -> mlp (default), convolution (over a frame's patches) or attention (a transformer block); other than mlp
    needs routing_unit segment."""
    shared_experts: int = 0
    """Always-on experts beside those that the gate chooses."""
    routed_scale: float = 1.0
    """What the sum of the chosen experts is multiplied by. Their weights sum to 1, so it is an average; K makes it as
    large as the output of one dense network of their widths together."""
    moe_every: int = 1
    """Experts in every n-th feed-forward layer, beginning with the entry layer; dense-active ones between."""

    # --- the gate
    gate: GateKind = "learned"
    """Learned; frozen at its random start; or typed: hard-wired by modality, no gate."""
    gate_prior: float = 1.0
    """Bonus in logits with which each modality starts at the experts of its own role; learned from there on."""
    gate_bias: bool = True
    """Whether logits have a learned term per modality."""
    gate_choice: GateChoice = "token"
    """Who chooses: tokens their experts, or experts their tokens (to study training: such a policy cannot act)."""
    routing_unit: RoutingUnit = "token"
    """What decides together: each token alone; a frame, a sentence or a state (segment); or the whole sample, by its
    instruction alone, so that what one instruction needs can be cut out."""
    gate_hears: bool = False
    """Whether the gate also reads the sentence, so that the same token may go to other experts for another task."""
    gate_jitter: float = 0.0
    """Training: multiplicative noise on the gate's copy of its input."""
    gate_noise: bool = False
    """Training: learned Gaussian noise on the logits (noisy top-k)."""
    capacity_factor: float | None = None
    """Training: an expert takes at most ceil(K T / E * factor) tokens, the rest is dropped; none for no limit."""

    # --- balance
    balance_weight: float = 0.02
    """Weight of the load-balance loss."""
    balance_groups: BalanceGroups = "role"
    """Balance each modality over the experts of its role, or all tokens over all experts."""
    z_weight: float = 0.0
    """Weight of the router z-loss. Its cheapest way to smaller logits is to empty the gate's starting bonus, and with
    1e-3 all camera tokens left the vision experts within 1,100 steps; the float32 gate was stable without it."""
    importance_weight: float = 0.0
    """Weight of the importance loss (Shazeer 2017)."""
    load_weight: float = 0.0
    """Weight of the load loss (Shazeer 2017); needs gate_noise."""
    local_entropy_weight: float = 0.0
    """Weight of LIMoE's local entropy loss."""
    global_entropy_weight: float = 0.0
    """Weight of LIMoE's global entropy loss."""
    bias_rate: float = 0.0
    """Step of the balancing bias (DeepSeek-V3), the way to balance without a loss; 0 for none, 0.001 is theirs."""
    cold_after: int = 200
    """Updates with less than a tenth of its fair share after which an expert is reported as cold."""
    revive: bool = False
    """Bring a cold expert back as a copy of the busiest of its role."""

    # --- training and tokens
    task_weight: float = 0.1
    """Weight of telling the task's name from the words, in training: it ties synonyms together early."""
    task_names: tuple[str, ...] = ()
    """The names to tell, from the demonstrations; empty leaves that loss out."""
    ignore_state: tuple[str, ...] = ("*.vel",)
    """State entries that the policy does not read, as shell patterns of their names. Velocities tell where the
    demonstrator was going: a policy that reads them copies the motion and does not look for the goal (the copycat
    problem, Wen et al. 2020)."""
    state_octaves: int = 0
    """Fourier features of each state number: so many sines and cosines, each twice as fast as the one before. Where a
    demonstrator changes its mind within a small part of the hand's range, the number alone tells too little apart."""
    places_weight: float = 1.0
    """Weight of telling where things are, in training: it teaches the glimpses to find them."""
    pictures_weight: float = 0.1
    """Weight of telling where things are in the pictures, from demonstrations that recorded that as well."""
    places: tuple[str, ...] = ()
    """The names of those places, such as "red_cube.x", from demonstrations that recorded them; empty leaves that loss
    out. The part before the last dot is the thing."""
    sensor_dropout: float = 0.0
    """Training: each camera, the arm's state and the gripper's are absent with this probability, in each sample apart.
    A policy trained so may act without one of them; others refuse. The sentence always stays: without it nobody can
    know the task."""
    vision: str = "scratch"
    """Vision encoder: "scratch", or "bundled:efficientnet-lite0", frozen, from the extra `pretrained`."""
    stem_channels: int = 32
    """Channels of the camera stem's feature map."""
    patches: int = 4
    """The feature map is pooled to patches x patches tokens per camera."""
    glimpses: int = 4
    """Tokens per camera read from the fine feature map, half of what they hold where the instruction points."""
    search: Search = "sentence"
    """What half of a glimpse looks for: what the sentence is about, by queries that it makes; or every thing by its own
    name, of which the sentence then chooses. Where demonstrations tell which thing is "the object" and where "the goal"
    is, the first is learned much sooner (docs/results/presets-log.md)."""
    text: str = "scratch"
    """Text encoder: "scratch", "bundled:minilm", a local directory, a hub id, or "none" (cannot read)."""
    head: Head = "l1"
    """Action head: L1 regression of the chunk, flow matching, or the competing local experts of 1991."""
    chunk: int = 8
    """H, control steps predicted at once."""
    execute: int = 2
    """Control steps executed of each chunk before the network runs again."""
    shift: int = 2
    """Random image shift in training, in pixels at 96; 0 for none."""
    picture_heights: tuple[int, ...] = ()
    """Training: heights in pixels of which each batch draws one, to which its pictures are scaled; multiples of 4. Low
    ones are quick to learn from. None for the pictures as they were recorded, which is what a policy acts on."""
    jitter: float = 0.1
    """Random brightness and contrast in training, as a fraction; 0 for none."""
    only_instruction: str = ""
    """The one sentence that a policy cut out for it follows; empty for all others."""

    def __post_init__(self) -> None:
        for name, low in (
            ("width", 8), ("layers", 2), ("heads", 1), ("hidden", 1), ("chunk", 1), ("execute", 1), ("patches", 1),
            ("moe_every", 1), ("cold_after", 1), ("shared_experts", 0), ("state_octaves", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise UserError(f"policy config: {name} is {getattr(self, name)}, expected at least {low}")
        if self.execute > self.chunk:
            raise UserError(f"policy config: execute is {self.execute}, expected at most the chunk of {self.chunk}")
        if self.width % self.heads:
            raise UserError(f"policy config: width {self.width} is no multiple of heads {self.heads}")
        for name, literal in CHOICES.items():
            if getattr(self, name) not in get_args(literal):
                raise unknown(name, getattr(self, name), get_args(literal))
        for role, n in self.experts.items():
            if role not in MODALITIES:
                raise unknown("expert role", role, MODALITIES)
            if n < 0:
                raise UserError(f"policy config: experts.{role} is {n}, expected 0 or more")
        if not 1 <= self.experts_per_token <= self.n_experts:
            raise UserError(
                f"policy config: experts_per_token is {self.experts_per_token}, "
                f"expected 1 to {self.n_experts} (the number of experts)"
            )
        for mode in self.normalisation.values():
            if mode not in get_args(Normalisation):
                raise unknown("normalisation", str(mode), get_args(Normalisation))
        if not 0 < self.routed_scale < 1000:
            raise UserError(f"policy config: routed_scale is {self.routed_scale}, expected above 0 and below 1000")
        if self.vision != SCRATCH and set(self.normalisation) - {"state", "action", "places"}:
            raise UserError(f"policy config: {self.vision} takes pictures as they are: normalise no images or camera")
        if any(height < 16 or height % 4 for height in self.picture_heights):
            raise UserError(
                f"policy config: picture_heights are {list(self.picture_heights)}, expected multiples of 4 from 16 up"
            )
        if not 0 <= self.sensor_dropout < 1:
            raise UserError(f"policy config: sensor_dropout is {self.sensor_dropout}, expected at least 0 and below 1")
        self._check_gate()

    def _check_gate(self) -> None:
        for role, kind in self.expert_kinds.items():
            if not self.experts.get(role):
                raise unknown("expert role", role, [name for name, n in self.experts.items() if n])
            if kind not in get_args(ExpertKind):
                raise unknown("expert kind", kind, get_args(ExpertKind))
            if kind != "mlp" and self.routing_unit == "token":
                raise UserError(
                    f"policy config: expert kind {kind!r} takes whole frames or sentences, "
                    "expected routing_unit segment or instruction"
                )
        whole = [role for role, kind in self.expert_kinds.items() if kind != "mlp"]
        if whole and (self.capacity_factor is not None or self.gate_choice == "expert"):
            raise UserError(
                f"policy config: the {whole[0]} experts take whole frames or sentences, which a capacity or expert "
                "choice would cut; expected capacity_factor none and gate_choice token"
            )
        if self.load_weight and not self.gate_noise:
            raise UserError("policy config: load_weight needs the noise of noisy top-k, expected gate_noise true")
        if self.routing_unit == "instruction" and self.text == "none":
            raise UserError("policy config: routing_unit instruction needs a policy that reads, not text none")
        if self.gate_hears and (self.gate == "typed" or self.routing_unit != "token" or self.text == "none"):
            raise UserError(
                "policy config: gate_hears needs a gate that decides token by token in a policy that reads, expected "
                "gate learned or random, routing_unit token, and a text encoder"
            )
        if self.bias_rate < 0:
            raise UserError(f"policy config: bias_rate is {self.bias_rate}, expected 0 or more")

    @property
    def n_experts(self) -> int:
        """Experts per layer."""
        return sum(self.experts.values())

    @property
    def balances_all(self) -> bool:
        """Whether load is even when all experts have the same, whatever their role."""
        return self.balance_groups == "all" or self.routing_unit == "instruction"

    def is_sparse(self, layer: int) -> bool:
        """Whether feed-forward layer ``layer`` (0 is the entry layer) has experts behind a gate."""
        return self.feed_forward == "moe" and layer % self.moe_every == 0

    def hears(self, layer: int) -> bool:
        """Whether feed-forward layer ``layer`` has a gate that reads the sentence beside its token."""
        return self.gate_hears and self.is_sparse(layer)

    @property
    def dense_hidden(self) -> int:
        """Hidden width of a dense feed-forward layer."""
        total = self.n_experts if self.feed_forward == "dense-total" else self.experts_per_token
        return (total + self.shared_experts) * self.hidden

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
