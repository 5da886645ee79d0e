"""The control loop for a simulated robot that waits for its commands: each of its moments is answered once.

Nothing depends on how fast the machine is, so the actions are those of an evaluation in one process. The robot stands
behind the safety gate and beside the watchdog here too; after a hold the moment that was not answered is tried again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moe_robot.deploy import motion
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.loop import Step, Thinker
from moe_robot.deploy.observation import observe
from moe_robot.deploy.robot_io import JointCommand
from moe_robot.deploy.simulation.lockstep import LOOK_S, STEP
from moe_robot.deploy.sync import Sensed
from moe_robot.deploy.timings import Timings

AGAIN_S = 0.3
"""An answer that the robot does not move upon is sent again: it may be lost, and the robot knows it by its mark."""


class LockstepLoop:
    """Runs one policy on one waiting robot. For one thread; enabling and stopping the robot is for any."""

    def __init__(self, robot: GuardedRobot, contract: Contract, policy: Thinker, task: str) -> None:
        """Nothing runs yet.

        Args:
            robot: behind the gate; it takes joint positions.
            contract: of the robot.
            policy: its answers are what is played before it is asked again (``load_act(..., as_evaluated=True)``).
            task: the instruction.
        """
        self._robot, self._contract, self._policy, self._task = robot, contract, policy, task
        self._mark = self._episode = self._asked_in = ""
        self._plan: deque[tuple[int, np.ndarray]] = deque()
        self._thinking = False
        self._action: tuple[int, np.ndarray] | None = None
        self._sent = self._idled = -float("inf")
        self.timings = Timings()

    def run(
        self,
        stop: Callable[[], bool],
        on_step: Callable[[Step], None] = lambda step: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Answer until ``stop()``. ``on_step`` is given every command, and once a control period that there is none."""
        while not stop():
            step = self.look()
            if step is not None:
                on_step(step)
            sleep(LOOK_S)

    def look(self) -> Step | None:
        """Do what can be done now: take the policy's answer, ask it, send what this moment is to be answered with."""
        now, sensed = self._robot.now(), self._robot.sense()
        mark = mark_of(sensed, self._contract)
        if mark and mark != self._mark:
            self._begin(mark)
        self._listen(now)
        if self._policy.failure is not None:
            self._robot.trip("policy", self._policy.failure)
        if mark and now - self._sent >= AGAIN_S and self._has_action(sensed) and self._robot.state is State.ENABLED:
            return self._answer(sensed, now)
        return self._idle(sensed, now)

    def _begin(self, mark: str) -> None:
        """Another moment; of another episode nothing counts that was planned before."""
        self._mark, self._action, self._sent = mark, None, -float("inf")
        if (episode := mark.rpartition(STEP)[0]) != self._episode:
            self._episode = episode
            self._plan.clear()

    def _listen(self, now: float) -> None:
        chunk = self._policy.answer()
        if chunk is None:
            return
        self._thinking = False
        self.timings.add("observation to answer", now - chunk.observed)
        if self._asked_in == self._episode:
            self._plan.extend(enumerate(chunk.actions))

    def _has_action(self, sensed: Sensed) -> bool:
        """Whether there is an answer to this moment; else the policy is asked, once."""
        if self._action is None and self._plan:
            self._action = self._plan.popleft()
        if self._action is None and not self._thinking:
            seen = observe(sensed, self._contract, self._task)
            if seen and self._policy.ask(*seen):
                self._thinking, self._asked_in = True, self._episode
        return self._action is not None

    def _answer(self, sensed: Sensed, now: float) -> Step:
        assert self._action is not None
        assert sensed.newest is not None
        index, action = self._action
        # In the time of a world that stands still: each action of a plan is a control step older than the one before.
        observed = sensed.newest.sensed - index * self._contract.period_s
        command = motion.command(action, sensed.newest, self._contract, observed)
        if isinstance(command, JointCommand):
            command = replace(command, mark=self._mark)
        decision = self._robot.step(command)
        if decision.passed is None:
            return Step(now, sensed, None, decision)
        first, self._sent = self._sent == -float("inf"), now
        return Step(now, sensed, action if first else None, decision, observed)

    def _idle(self, sensed: Sensed, now: float) -> Step | None:
        """No command; the gate looks at the sensors once a control period, as in the loop in real time."""
        if now - self._idled < self._contract.period_s:
            return None
        self._idled = now
        return Step(now, sensed, None, self._robot.step(None))


def mark_of(sensed: Sensed, contract: Contract) -> str:
    """What all pictures and joint states are marked with; nothing when they are not all of one marked moment."""
    parts = [*(sensed.images.get(camera) for camera in contract.cameras), sensed.joints, sensed.newest]
    marks = {str(part.message["header"].get("frame_id")) if part and part.message else "" for part in parts}
    return marks.pop() if len(marks) == 1 else ""
