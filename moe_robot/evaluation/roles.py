"""Who plays what, and what came of it: jobs, episodes and the cast, as plain records."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.registry import load_policy
from moe_robot.types import Policy, Routing

SHUFFLED = "shuffled"


@dataclass(frozen=True)
class Job:
    """What decides an episode: task, seed, and for the shuffled test the task that the sentence names.

    Attributes:
        knockout: the expert role that is switched off, or the part of the gate, or "" for all on.
        sensors_off: the sensors that are switched off, joined by "+", or "" for all on.
    """

    task: str
    seed: int
    named_task: str | None = None
    knockout: str = ""
    sensors_off: str = ""

    @property
    def name(self) -> str:
        """File name of the job's video and strip, without ending."""
        return f"{self.task}_{self.seed}"


@dataclass(frozen=True)
class Episode:
    """What happened in one job. Equality is about the outcome; the clock and the routing counts are left out of it.

    Attributes:
        sentence: the instruction that the policy read.
        success: the task was done (of the task that was meant, when shuffled).
        named_success: when shuffled, whether the task that the sentence named was done; else None.
        wrong: the environment ended the episode because something else was done.
        timeout: time ran out with neither.
        steps: control steps.
        latency_ms: wall time of each ``select_action`` in which the network ran.
        step_ms: wall time of each control step, policy and simulation together.
        routing: routes of all inferences of the episode, or None without a gate.
    """

    job: Job
    sentence: str
    success: bool
    named_success: bool | None
    wrong: bool
    timeout: bool
    steps: int
    latency_ms: tuple[float, ...] = field(compare=False)
    step_ms: tuple[float, ...] = field(compare=False)
    routing: Routing | None = field(compare=False)

    @property
    def verdict(self) -> str:
        """``success``, ``wrong``, ``time out`` or ``ended``."""
        if self.success:
            return "success"
        return "wrong" if self.wrong else "time out" if self.timeout else "ended"


@dataclass(frozen=True)
class Cast:
    """Who plays where: everything a process needs to run jobs. It can be pickled.

    Attributes:
        checkpoint: the folder with ``config.json``.
        environment: a Gymnasium id, made with ``options``.
        instructions: an instruction set of the environment, or "shuffled".
        instruction: the one sentence of every episode in place of the environment's own; None for its own.
        policy_factory: ``(checkpoint, device) -> Policy``.
    """

    checkpoint: Path
    environment: str
    options: Mapping[str, Any]
    instructions: str
    device: str
    policy_factory: Callable[[Path, str], Policy] = load_policy
    instruction: str | None = None


def named_task(task: str, seed: int, tasks: Sequence[str]) -> str:
    """The task whose name the sentence takes in the shuffled test: one of the others, decided by seed and task."""
    others = [other for other in tasks if other != task]
    return others[int(np.random.default_rng([seed, zlib.crc32(task.encode())]).integers(len(others)))]


def sensor_names(joined: str) -> tuple[str, ...]:
    """``"front+wrist"`` -> ``("front", "wrist")``; nothing from nothing."""
    return tuple(joined.split("+")) if joined else ()
