"""From a client's observation dict, in our keys or openpi's, to arrays that fit the policy; else one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_robot.deploy.instruction import instruction
from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Features, UserError

RESET = "reset"
"""True with an observation that begins an episode: what is left of the robot's plan is dropped."""
OPENPI_STATE, OPENPI_TASK, OPENPI_IMAGE, OPENPI_PREFIX = (
    "observation/state",
    "prompt",
    "observation/image",
    "observation/",
)


@dataclass(frozen=True)
class Sensed:
    """One robot's observation, checked.

    Attributes:
        arrays: ``observation.images.<camera>`` uint8 (H, W, 3) and ``observation.state`` float32 (S,).
        task: the instruction; None when the client gave none.
        reset: whether an episode begins.
    """

    arrays: Mapping[str, np.ndarray]
    task: str | None
    reset: bool = False


@dataclass(frozen=True)
class Reader:
    """Reads observation dicts for one policy.

    Attributes:
        features: of the policy.
        needs_all: whether every camera and the state must be there; a policy with ``sensor_dropout`` can do without.
        needs_task: whether the policy reads the instruction.
        rename: a client's key -> our key, before the names that are known by themselves.
        ignore: a client's keys that nobody reads.
    """

    features: Features
    needs_all: bool = True
    needs_task: bool = True
    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        wanted = (*self.keys, TASK)
        for theirs, ours in self.rename.items():
            if ours not in wanted:
                raise UserError(f"--rename {theirs}={ours}: expected one of {', '.join(wanted)} after the =")

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the arrays that the policy takes."""
        return (*(IMAGE_PREFIX + camera for camera in self.features.cameras), STATE)

    @property
    def names(self) -> dict[str, str]:
        """Every key that a client may send -> our key."""
        cameras = tuple(self.features.cameras)
        known = {key: key for key in (*self.keys, TASK)}
        known |= {OPENPI_PREFIX + camera: IMAGE_PREFIX + camera for camera in cameras}
        known |= {OPENPI_STATE: STATE, OPENPI_TASK: TASK}
        if len(cameras) == 1:
            known.setdefault(OPENPI_IMAGE, IMAGE_PREFIX + cameras[0])
        return known | dict(self.rename)

    def read(self, content: Any) -> Sensed:
        """The observation in a decoded frame.

        Raises:
            UserError: something is missing, unknown, given twice, or of another size or type.
        """
        if not isinstance(content, Mapping):
            raise UserError(f"an observation is a map with the keys {self._expected()}, got a {type(content).__name__}")
        names, ours, came_as = self.names, dict[str, Any](), dict[str, str]()
        for key, value in content.items():
            if key == RESET or key in self.ignore:
                continue
            name = names.get(key)
            if name is None:
                raise UserError(self._unknown(key))
            if name in ours:
                raise UserError(f"the observation has {name!r} twice, as {came_as[name]!r} and as {key!r}")
            ours[name], came_as[name] = value, key
        arrays = {key: self._array(key, ours[key], came_as[key]) for key in self.keys if key in ours}
        missing = [key for key in self.keys if key not in arrays]
        if missing and (self.needs_all or not arrays):
            raise UserError(
                f"the observation lacks {missing[0]!r} (it has {', '.join(map(repr, content)) or 'nothing'}): expected "
                f"{self._expected()}; other names are mapped by the server's --rename THEIRS={missing[0]}"
            )
        task = ours.get(TASK)
        if task is None and self.needs_task:
            raise UserError(f"the observation lacks the instruction: expected a string as {TASK!r} or {OPENPI_TASK!r}")
        if task is not None and not isinstance(task, str):
            raise UserError(f"the instruction {came_as[TASK]!r} is a {type(task).__name__}, expected a string")
        return Sensed(arrays, None if task is None else instruction(task), self._reset(content.get(RESET, False)))

    def _reset(self, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise UserError(f"{RESET!r} is a {type(value).__name__}, expected true or false")
        return bool(value)

    def _array(self, key: str, value: Any, came_as: str) -> np.ndarray:
        if key == STATE:
            return self._state(value, came_as)
        shape = (*self.features.cameras[key.removeprefix(IMAGE_PREFIX)], 3)
        if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.uint8:
            there = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise UserError(f"camera {came_as!r} gives {there}, expected uint8 {shape}: resize it where it is taken")
        return value

    def _state(self, value: Any, came_as: str) -> np.ndarray:
        names = self.features.state_names
        if isinstance(value, list) and all(isinstance(x, int | float | np.number) for x in value):
            value = np.array(value, dtype=np.float64)
        if not isinstance(value, np.ndarray) or value.shape != (len(names),) or value.dtype.kind not in "fiu":
            there = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise UserError(f"{came_as!r} is {there}, expected ({len(names)},) numbers: {', '.join(names)}")
        state = value.astype(np.float32)
        if not np.isfinite(state).all():
            raise UserError(
                f"{came_as!r} holds numbers that are not finite ({names[int(np.argmin(np.isfinite(state)))]})"
            )
        return state

    def _unknown(self, key: Any) -> str:
        return (
            f"the observation has {key!r:.80}, which nobody reads: expected {self._expected()}; the server's "
            "--rename THEIRS=OURS maps it, --ignore KEY lets it be"
        )

    def _expected(self) -> str:
        return ", ".join([*self.keys, *([TASK] if self.needs_task else [])])
