"""What crosses a border between packages: observations, features, statistics, routing counts, protocols (numpy only).

Keys follow LeRobot: ``observation.images.<camera>``, ``observation.state``, ``task``, ``action``, ``action_is_pad``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

STATE = "observation.state"
IMAGE_PREFIX = "observation.images."
TASK = "task"
TASK_NAME = "task_name"
"""Training batches only: which task of the environment an episode is, whatever its sentence says."""
ENVIRONMENT_STATE = "environment_state"
"""Training batches only: where things are, for environments that know (simulation). Not under ``observation.``, on
purpose: who trains on the data with other tools must not take it for an input."""
ACTION = "action"
ACTION_IS_PAD = "action_is_pad"

GATE_MODALITY, GATE_CONTENT, GATE_ROLES = GATE_PARTS = ("gate.modality", "gate.content", "gate.roles")
"""What can be knocked out of a gate itself: its term per modality; its weights on the token; and which role's experts
each modality prefers (permuted, not removed)."""


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, what was expected, what to do."""


@dataclass(frozen=True)
class Observation:
    """What the robot senses at one instant, before any normalisation.

    A camera that is absent is left out of ``images``; an absent state or instruction is ``None``. The policy treats
    what is absent as absent (its tokens and experts are masked), never as zeros.

    Attributes:
        images: camera name -> uint8 array (H, W, 3), RGB.
        state: float32 array (S,), in the units of the environment's ``state_names``.
        task: the instruction, a sentence.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray | None
    task: str | None

    @classmethod
    def from_gymnasium(cls, observation: Mapping[str, Any], task: str | None) -> Observation:
        """Read ``{"pixels": {camera: HWC}, "agent_pos": vector}``, the form of every environment here."""
        pixels = observation["pixels"]
        images = dict(pixels) if isinstance(pixels, Mapping) else {"pixels": pixels}
        return cls(images, np.asarray(observation["agent_pos"], dtype=np.float32), task)


@dataclass(frozen=True)
class RecordedStep:
    """One thing that was done in a recording, and the observation that a policy is asked about to compare.

    Attributes:
        observation: what was sensed. Steps that answer the same observation share the object.
        recorded: (A,) what was done: an action, or what became of it.
        time: when, seconds from the beginning of the recording or episode.
        ahead: how many control steps after the observation it was done: which action of the policy's chunk it is.
        episode: which, in a recording with several.
        as_recorded: from the policy's action (A',) to what it would have been recorded as (A,); None when actions
            themselves were recorded.
    """

    observation: Observation
    recorded: np.ndarray
    time: float
    ahead: int = 0
    episode: int = 0
    as_recorded: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Features:
    """What a data set holds, an environment gives and a policy needs. Equal features make the three fit together.

    Attributes:
        cameras: camera name -> (height, width) in pixels.
        state_names: one name per entry of the state vector, for example ``"joint1.pos"``.
        action_names: one name per entry of the action vector.
        fps: control steps per second.
        environment_names: one name per privileged number that demonstrations record beside the observation, for
            example ``"red_cube.x"``. A label for training, never an input, so policies fit environments without them.
    """

    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: int
    environment_names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dict for ``config.json``."""
        return {
            "cameras": {name: list(size) for name, size in self.cameras.items()},
            "state_names": list(self.state_names),
            "action_names": list(self.action_names),
            "fps": self.fps,
            "environment_names": list(self.environment_names),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Features:
        """The inverse of :meth:`to_json`."""
        return cls(
            cameras={name: (int(size[0]), int(size[1])) for name, size in data["cameras"].items()},
            state_names=tuple(data["state_names"]),
            action_names=tuple(data["action_names"]),
            fps=int(data["fps"]),
            environment_names=tuple(data.get("environment_names", ())),
        )

    def mismatch(self, other: Features) -> str | None:
        """The first difference that would make a policy with these features misread ``other``, or None.

        ``environment_names`` do not count: nothing reads them when a policy acts.
        """
        missing = [name for name in self.cameras if name not in other.cameras]
        if missing:
            return f"camera {missing[0]!r} is missing (it has {', '.join(map(repr, other.cameras)) or 'none'})"
        for name, size in self.cameras.items():
            if tuple(size) != tuple(other.cameras[name]):
                (h, w), (oh, ow) = size, other.cameras[name]
                return f"camera {name!r} is {oh}x{ow} pixels, expected {h}x{w}"
        for kind, mine, theirs in (
            ("state", self.state_names, other.state_names),
            ("action", self.action_names, other.action_names),
        ):
            if tuple(mine) != tuple(theirs):
                return f"{kind} is ({', '.join(theirs)}), expected ({', '.join(mine)})"
        if self.fps != other.fps:
            return f"control runs at {other.fps} Hz, expected {self.fps} Hz"
        return None


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one feature over all frames of a data set, in its own units.

    Vectors have shape (D,); images have shape (3,) per channel, in [0, 1].
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    count: int
    quantiles: Mapping[str, np.ndarray] = field(default_factory=dict)
    """``"q01"``, ``"q10"``, ``"q50"``, ``"q90"``, ``"q99"`` -> array of the same shape as ``mean``."""


def _untold() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Routing:
    """What the gate did: routes per layer, modality and expert, and how sure it was.

    Only the counts must be told; the rest is zeros where a policy does not tell it. Routings of one gate add up.

    Attributes:
        modalities: names of the token kinds, for example ``("vision", "arm", "grasp", "language")``.
        experts: names of the experts, for example ``"vision.0"``.
        roles: the role of each expert, aligned with ``experts``.
        counts_LME: int64 array (layers, modalities, experts): (token, expert) routes that the gate made, those that
            found no place included.
        tokens_LM: int64 array (layers, modalities): tokens that the gate saw; 0 everywhere where untold.
        entropy_LM: float64 array (layers, modalities): the gate's entropy in nats, summed over tokens.
        dropped_LME: int64 array (layers, modalities, experts): routes lost to capacity.
        top_LME: int64 array (layers, modalities, experts): first choices alone, one per token.
    """

    modalities: tuple[str, ...]
    experts: tuple[str, ...]
    roles: tuple[str, ...]
    counts_LME: np.ndarray
    tokens_LM: np.ndarray = field(default_factory=_untold)
    entropy_LM: np.ndarray = field(default_factory=_untold)
    dropped_LME: np.ndarray = field(default_factory=_untold)
    top_LME: np.ndarray = field(default_factory=_untold)

    def __post_init__(self) -> None:
        shape = self.counts_LME.shape
        for name, wanted, kind in (
            ("tokens_LM", shape[:2], np.int64),
            ("entropy_LM", shape[:2], np.float64),
            ("dropped_LME", shape, np.int64),
            ("top_LME", shape, np.int64),
        ):
            value = getattr(self, name)
            if value is None or value.size == 0:
                object.__setattr__(self, name, np.zeros(wanted, dtype=kind))
            elif value.shape != wanted:
                raise ValueError(f"routing {name} has shape {value.shape}, expected {wanted} as in the counts")

    def __add__(self, other: Routing) -> Routing:
        if (self.modalities, self.experts) != (other.modalities, other.experts):
            raise ValueError("routing counts of two different gates cannot be added")
        return Routing(
            self.modalities,
            self.experts,
            self.roles,
            self.counts_LME + other.counts_LME,
            self.tokens_LM + other.tokens_LM,
            self.entropy_LM + other.entropy_LM,
            self.dropped_LME + other.dropped_LME,
            self.top_LME + other.top_LME,
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict of lists."""
        arrays = ("counts_LME", "tokens_LM", "entropy_LM", "dropped_LME", "top_LME")
        names = {name: list(getattr(self, name)) for name in ("modalities", "experts", "roles")}
        return names | {name: getattr(self, name).tolist() for name in arrays}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Routing:
        """The inverse of :meth:`to_json`; what an older file does not tell is zeros."""
        kinds = {"tokens_LM": np.int64, "entropy_LM": np.float64, "dropped_LME": np.int64, "top_LME": np.int64}
        return cls(
            tuple(data["modalities"]),
            tuple(data["experts"]),
            tuple(data["roles"]),
            np.asarray(data["counts_LME"], dtype=np.int64),
            **{name: np.asarray(data[name], dtype=kind) for name, kind in kinds.items() if name in data},
        )

    def share(self) -> dict[str, dict[str, float]]:
        """Modality -> role -> share of that modality's routes, over all layers; absent modalities are left out."""
        counts_ME = self.counts_LME.sum(axis=0)
        roles = list(dict.fromkeys(self.roles))
        table: dict[str, dict[str, float]] = {}
        for m, modality in enumerate(self.modalities):
            total = int(counts_ME[m].sum())
            if total:
                table[modality] = {
                    role: float(sum(counts_ME[m, e] for e, r in enumerate(self.roles) if r == role) / total)
                    for role in roles
                }
        return table

    def drop_rates(self) -> dict[str, float]:
        """Share of the routes lost to a capacity, of every modality and of every expert, over all layers.

        Empty when nothing was lost; modalities and experts without routes are left out.
        """
        rates: dict[str, float] = {}
        if not self.dropped_LME.any():
            return rates
        for names, axes in ((self.modalities, (0, 2)), (self.experts, (0, 1))):
            lost, made = self.dropped_LME.sum(axis=axes), self.counts_LME.sum(axis=axes)
            rates |= {name: float(lost[i] / made[i]) for i, name in enumerate(names) if made[i]}
        return rates


@dataclass(frozen=True)
class GateEvent:
    """Something that happened to an expert in training.

    Attributes:
        kind: "cold" (it has had next to no tokens for long) or "revived".
        layer: which feed-forward layer with experts, the entry layer is 0.
        expert: its name.
        source: the expert that a revived one became a copy of.
    """

    kind: str
    layer: int
    expert: str
    source: str | None = None


@dataclass(frozen=True)
class Cost:
    """What a policy costs.

    Attributes:
        total_parameters: all that are trained and stored.
        active_parameters: those that one token can meet: all but the experts that it does not wake.
        flops: floating-point operations of one new action chunk for one observation, by part ("stems", "attention",
            "gate", "experts", "head"); a multiplication and an addition are two.
        frozen_parameters: of frozen encoders that run for every picture, in none of the other two.
    """

    total_parameters: int
    active_parameters: int
    flops: Mapping[str, int]
    frozen_parameters: int = 0

    @property
    def total_flops(self) -> int:
        """All parts together."""
        return sum(self.flops.values())


@runtime_checkable
class Policy(Protocol):
    """What evaluation and deployment need of a policy. One instance controls one robot at a time."""

    @property
    def features(self) -> Features:
        """The features the policy was trained on."""
        ...

    @property
    def inference_count(self) -> int:
        """How often the network has run; it rises by one in the ``select_action`` calls that need a new chunk."""
        ...

    def reset(self) -> None:
        """Forget the episode: empty the action queue."""
        ...

    def select_action(self, observation: Observation) -> np.ndarray:
        """The next action, float32 (A,), in the environment's units."""
        ...

    def routing(self) -> Routing | None:
        """Routes of the latest inference, or None for a policy without a gate."""
        ...

    def disable_experts(self, roles: Sequence[str]) -> None:
        """Switch all experts of these roles off from now on (a knock-out study); an empty sequence switches all on."""
        ...

    def after_update(self, optimiser: Any = None) -> Sequence[GateEvent]:
        """Called by the training loop after each optimiser step: gate biases, cold experts. Returns what happened."""
        ...


@runtime_checkable
class SensorSwitches(Protocol):
    """What a policy has whose sensors can be switched off; a policy without it can do all else."""

    @property
    def sensors(self) -> tuple[str, ...]:
        """What can be switched off: each camera by its name, then "arm", "grasp", "language" where there are such."""
        ...

    def disable_sensors(self, names: Sequence[str]) -> None:
        """Treat these sensors as absent from now on: their tokens and experts are masked. None switches all on.

        Raises:
            UserError: an unknown name, or nothing left to sense with.
        """
        ...


@runtime_checkable
class PlansAhead(Protocol):
    """A policy that tells its whole plan; one that does not is asked for one action at a time."""

    def action_chunk(self, observation: Observation) -> np.ndarray:
        """Actions (H, A), float32, in the environment's units, the first for now, one control step apart."""
        ...


@runtime_checkable
class PlansTogether(Protocol):
    """A policy that plans for many robots in one pass and keeps nothing of them between the calls.

    What it answers to one observation is what it would answer to that one alone, but for the last bits of a float.
    """

    @property
    def steps_per_plan(self) -> int:
        """How many actions of a plan are to be played before the next one is made."""
        ...

    def action_chunks(self, observations: Sequence[Observation]) -> np.ndarray:
        """Plans (B, H, A), float32, in the environment's units, one per observation; all have the same sensors."""
        ...

    def routings(self) -> Sequence[Routing]:
        """Routes of the latest pass, one per observation; empty for a policy without a gate."""
        ...


def action_chunk(policy: Policy | PlansAhead, observation: Observation) -> np.ndarray:
    """What any policy answers to one observation by itself: its plan (H, A), or the one action (1, A) that it tells."""
    if isinstance(policy, PlansAhead):
        return policy.action_chunk(observation)
    policy.reset()
    return policy.select_action(observation)[None]


@dataclass(frozen=True)
class CapturedPolicy:
    """A policy as one graph: raw sensor values in, actions in the environment's units out.

    Attributes:
        program: a ``torch.export.ExportedProgram``. Its inputs are a dict camera -> uint8 (B, H, W, 3), the state
            float32 (B, S), and, where there is a vocabulary, numbered words int64 (B, W). Its output is the plan
            (B, H, A).
        chunk: H, control steps planned at once.
        execute: control steps of a plan that the policy plays before it plans again.
        vocabulary: number of each word, for :func:`moe_robot.words.number_words`; None for a policy that cannot read.
        only_instruction: the one sentence that it follows; empty for all.
        examples: a few made-up observations in the range of the training data, to try a written graph with.
    """

    program: Any
    chunk: int
    execute: int
    vocabulary: Mapping[str, int] | None
    only_instruction: str
    examples: tuple[Observation, ...]


@runtime_checkable
class Capturable(Protocol):
    """A policy that can be written as a graph which runs without it."""

    def captured(self, any_batch: bool) -> CapturedPolicy:
        """The graph, for batches of any size or of one.

        Raises:
            UserError: what this policy is made of cannot be captured.
        """
        ...


@runtime_checkable
class TellsKnockouts(Protocol):
    """A policy that can say what may be knocked out; without it only the roles seen in its routing are asked of it."""

    @property
    def knockouts(self) -> tuple[str, ...]:
        """What ``disable_experts`` takes: roles with experts, and the :data:`GATE_PARTS` that its gate has."""
        ...

    def disable_experts(self, roles: Sequence[str]) -> None:
        """As for every policy, but also parts of the gate: the exact gate is back when they are switched on.

        Raises:
            UserError: a name that is not among ``knockouts``, with the reason.
        """
        ...


@runtime_checkable
class Costed(Protocol):
    """What a policy has that can tell its cost."""

    def cost(self) -> Cost:
        """Parameters and floating point operations of one new action chunk."""
        ...


@dataclass(frozen=True)
class TokenLabel:
    """What one token is made of.

    Attributes:
        modality: its kind, for example ``"vision"``.
        name: for people, for example ``"patch 2,3"``.
        camera: the camera it comes from, or None.
        cell: (row, column, rows, columns) of its place in a regular grid over the camera's picture, or None for a
            token that has no fixed place.
    """

    modality: str
    name: str
    camera: str | None = None
    cell: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class TokenRoutes:
    """Where every token of the latest forward pass went in one layer.

    Attributes:
        labels: what the N tokens are, the same for every sample of the batch and every layer.
        ids_BNK: int64 array (samples, tokens, K): experts, highest gate probability first; -1 where the token is absent
            or takes no part in this layer.
        weights_BNK: float32 array (samples, tokens, K): what each expert's output is multiplied by; 0 where absent.
    """

    labels: tuple[TokenLabel, ...]
    ids_BNK: np.ndarray
    weights_BNK: np.ndarray


@runtime_checkable
class TellsTokenRoutes(Protocol):
    """A policy that can say which token went where; a policy without it lacks only the pictures of image regions."""

    def token_routes(self) -> tuple[TokenRoutes, ...]:
        """One per layer, of the latest forward pass; empty for a policy without a gate."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A scripted teacher of one task, from ``env.unwrapped.make_expert(task)``.

    It reads privileged poses of the environment it was made from, and keeps no memory between calls.
    """

    def act(self) -> np.ndarray:
        """The clean action for the environment's present state, float32 (A,): the label."""
        ...

    def perturb(self, action: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
        """What to execute in place of ``action`` so that the data shows recoveries; ``scale`` 0 changes nothing.

        ``scale`` is the standard deviation in the environment's own unit of one control step's travel.
        """
        ...


class TaskEnvironment(Protocol):
    """What ``env.unwrapped`` offers beyond Gymnasium, for collection and evaluation by task name.

    An environment without ``tasks`` is treated as one task named after its id. One that knows where its things are may
    have ``environment_names`` and ``environment_state()``, a float32 vector of as many numbers, recorded as a label.
    One whose tasks are published in tiers of difficulty tells them as ``task_tiers``, tier -> tasks, for the means of
    the report. One that takes long to go from task to task says so with ``scene_per_task = True``; collection then
    keeps to a task for a while.
    ``reset(seed=, options={"task": name, "instructions": set, "named_task": name})`` decides task, layout and
    sentence. ``named_task`` is for the shuffled test: the sentence names that task while ``task`` is judged;
    ``info["named_success"]`` then tells of the named one. ``info["task"]`` is the sentence.
    """

    tasks: tuple[str, ...]
    task_groups: Mapping[str, tuple[str, ...]]
    instruction_sets: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    control_hz: int
    task_description: str

    def make_expert(self, task: str) -> Expert:
        """The scripted expert of ``task``, bound to this environment."""
        ...


@runtime_checkable
class RobotWorld(Protocol):
    """What ``env.unwrapped`` offers beyond :class:`TaskEnvironment` so that it can stand in for a robot in real time.

    N arm joints, F fingers. Its servos are those of its ``step``; ``reset`` begins an episode as ever.
    """

    control_hz: int
    joint_names: tuple[str, ...]
    """Of the N arm joints, then of the F fingers."""

    @property
    def update_s(self) -> float:
        """How much time passes in ``advance``, seconds."""
        ...

    def move_joints(self, positions: np.ndarray) -> None:
        """Begin to move the arm to ``positions`` (N,) rad, to be there after one control step and hold."""
        ...

    def move_fingers(self, opening: float) -> None:
        """Begin to move the fingers to where their positions add up to ``opening``, m."""
        ...

    def advance(self) -> None:
        """Let ``update_s`` seconds pass."""
        ...

    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Measured positions and velocities (N + F,) of ``joint_names``."""
        ...

    def pictures(self) -> Mapping[str, np.ndarray]:
        """What the cameras see now: camera -> uint8 (H, W, 3)."""
        ...

    def outcome(self) -> Mapping[str, Any]:
        """``info`` as ``step`` would tell it now: ``task_name``, ``success``, ``wrong``."""
        ...
