"""The control loop: sense, ask the policy, pick the action for now, make it a command, and hand it to the safety gate.

It never waits for the policy. Commands go out at a fixed rate, soon after the policy's answers; between them it takes
the answer as soon as it is there, and asks about what all cameras have told since. The robot it sees is always behind
the gate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moe_robot.deploy import motion
from moe_robot.deploy.chunks import Chunk, ChunkBuffer, Plan
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import Decision
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.observation import observe
from moe_robot.deploy.pace import Pace
from moe_robot.deploy.robot_io import Command, TwistCommand
from moe_robot.deploy.sync import Sensed
from moe_robot.deploy.timings import Timings
from moe_robot.types import Observation

LOOK_S = 0.002
"""Between two looks for an answer and for something new to ask about."""


class Thinker(Protocol):
    """What the loop needs of a policy: see :class:`moe_robot.deploy.inference.PolicyProcess`."""

    @property
    def failure(self) -> str | None:
        """Why it will answer no more, or None."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it waits for an observation."""
        ...

    def ask(self, observation: Observation, observed: float) -> bool:
        """Have it think about an observation, unless it is busy."""
        ...

    def answer(self) -> Chunk | None:
        """What it came to, once."""
        ...


@dataclass(frozen=True)
class Step:
    """What happened in one control step.

    Attributes:
        at: when, seconds.
        sensed: what the decision is based on.
        action: (A,) of the policy, None when there was none for this moment.
        decision: of the safety gate.
        observed: when the oldest observation that the action answers was sensed; None without an action.
    """

    at: float
    sensed: Sensed
    action: np.ndarray | None
    decision: Decision
    observed: float | None = None


class ControlLoop:
    """Runs one policy on one robot. For one thread; enabling and stopping the robot is for any."""

    def __init__(
        self, robot: GuardedRobot, contract: Contract, policy: Thinker, task: str,
        decay: float | None = 0.01, plan: Plan | None = None,
    ) -> None:  # fmt: skip
        """Nothing runs yet; ``decay`` is that of :class:`ChunkBuffer`, unless another ``plan`` is given."""
        self._robot, self._contract, self._policy, self._task = robot, contract, policy, task
        self._buffer = plan or ChunkBuffer(contract.period_s, contract.max_command_age_s, decay)
        self._beginning = self._asked_since = (0, 0, task)  # numbers of a connection and of an enabling
        self._answered = math.inf
        self._asked_about: tuple[int, dict[str, float]] = (-1, {})  # the connection, and when each picture was sensed
        self._twist: np.ndarray | None = None
        self._pace = Pace(contract.period_s, robot.now())
        self.timings = Timings()

    def instruct(self, task: str) -> None:
        """Follow another instruction from the next step on; from any thread. What was planned before is not played."""
        self._task = task

    def run(
        self,
        stop: Callable[[], bool],
        on_step: Callable[[Step], None] = lambda step: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """One step per control period until ``stop()``, in the phase that :class:`Pace` finds."""
        pace = self._pace = Pace(self._contract.period_s, self._robot.now())
        while not stop():
            self._wait(pace.due, sleep)
            self.timings.add("late", max(self._robot.now() - pace.due, 0.0))
            on_step(self.step())
            pace.next(self._robot.now())

    def step(self) -> Step:
        """One control step, now."""
        begun = self._robot.now()
        sensed = self._robot.sense()
        sensing_done = self._robot.now()
        self._begin_anew_if_needed(sensed, begun)
        self._listen(begun)
        self._ask(sensed)
        action = self._buffer.action(begun)
        if action is not None:
            self.timings.add("observation to command", begun - action[1])
        command = self._command(action, sensed)
        thinking_done = self._robot.now()
        self._watch_policy(action is not None, begun)
        decision = self._robot.step(command, enabling=self._beginning[1])
        passed = decision.passed.command if decision.passed else None
        self._twist = passed.twist if isinstance(passed, TwistCommand) else None
        done = self._robot.now()
        for stage, seconds in (
            ("sense", sensing_done - begun),
            ("decide", thinking_done - sensing_done),
            ("gate and send", done - thinking_done),
            ("step", done - begun),
        ):
            self.timings.add(stage, seconds)
        values, observed = action or (None, None)
        return Step(begun, sensed, values, decision, observed)

    def _wait(self, due: float, sleep: Callable[[float], None]) -> None:
        """Until ``due``; meanwhile the policy is not left waiting for the next step."""
        while (early := due - self._robot.now()) > 2 * LOOK_S:
            self.attend()
            sleep(LOOK_S)
        if early > 0:
            sleep(early)

    def attend(self) -> None:
        """Between two steps: take the policy's answer, and ask it about what is new. Nothing is sent to the robot."""
        now = self._robot.now()
        self._listen(now)
        if self._policy.ready:  # else what is sensed need not be looked at
            sensed = self._robot.look()
            if self._is_new(sensed):  # an observation is not made for nothing many times a step
                self._begin_anew_if_needed(sensed, now)
                self._ask(sensed)

    def _begin_anew_if_needed(self, sensed: Sensed, now: float) -> None:
        """What was planned before the robot was enabled, on another connection or for another task, is not played."""
        beginning = (sensed.epoch, self._robot.enablings, self._task)
        if beginning != self._beginning:
            self._buffer.clear()
            self._beginning, self._answered = beginning, now

    def _listen(self, now: float) -> None:
        chunk = self._policy.answer()
        if chunk is not None:
            self.timings.add("observation to answer", now - chunk.observed)
            self._pace.answered(chunk.observed, now)
            if self._asked_since == self._beginning:
                self._buffer.add(chunk)

    def _ask(self, sensed: Sensed) -> None:
        if not self._is_new(sensed):
            return
        seen = observe(sensed, self._contract, self._beginning[2])
        if seen and self._policy.ask(*seen):
            self._asked_since, self._asked_about = self._beginning, (sensed.epoch, _times(sensed))

    def _is_new(self, sensed: Sensed) -> bool:
        """Whether every camera has told something since the policy was asked last.

        Pictures of one moment come one after the other: of a new and an old one no observation is made.
        """
        epoch, before = self._asked_about
        times = _times(sensed)
        return epoch != sensed.epoch or all(time > before.get(name, -math.inf) for name, time in times.items())

    def _command(self, action: tuple[np.ndarray, float] | None, sensed: Sensed) -> Command | None:
        if action is None or sensed.newest is None:
            return None
        values, observed = action
        return motion.command(values, sensed.newest, self._contract, observed, self._twist)

    def _watch_policy(self, acted: bool, now: float) -> None:
        """Hold the robot when the policy is gone or has had nothing to say for as long as a chunk may be played."""
        if acted:
            self._answered = now
        silent = now - self._answered
        if self._policy.failure is not None:
            self._robot.trip("policy", self._policy.failure)
        elif silent > self._contract.max_command_age_s:
            self._robot.trip("policy", f"it gave no action for {silent:.3f} s")


def _times(sensed: Sensed) -> dict[str, float]:
    """When what an observation is made of was sensed: the pictures, or the joint state of a robot without cameras."""
    parts = sensed.images or {"": sensed.newest}
    return {name: part.sensed for name, part in parts.items() if part}
