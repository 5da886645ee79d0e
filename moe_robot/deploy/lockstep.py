"""The control loop for a simulated robot that waits for its commands: each of its moments is answered once.

Nothing depends on how fast the machine is, so the actions are those of an evaluation in one process. The robot stands
behind the safety gate and beside the watchdog here too; after a hold the moment that was not answered is tried again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from moe_robot.deploy import motion
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.loop import Step, Thinker
from moe_robot.deploy.observation import observe
from moe_robot.deploy.robot_io import RobotIO
from moe_robot.deploy.sync import Sensed
from moe_robot.deploy.timings import Timings

LOOK_S = 0.002
DROPPED = "commands dropped"


class LockstepLoop:
    """Runs one policy on one waiting robot. For one thread; enabling and stopping the robot is for any."""

    def __init__(self, robot: GuardedRobot, io: RobotIO, contract: Contract, policy: Thinker, task: str) -> None:
        """Nothing runs yet.

        Args:
            robot: behind the gate.
            io: the same without, to be asked what became of commands.
            contract: of the robot.
            policy: its answers are what is played before it is asked again (``load_act(..., as_evaluated=True)``).
            task: the instruction.
        """
        self._robot, self._io, self._contract, self._policy, self._task = robot, io, contract, policy, task
        self._plan: deque[tuple[int, np.ndarray]] = deque()
        self._epoch, self._asked_in = 0, -1
        self._mark = ""
        self._action: tuple[int, np.ndarray] | None = None
        self._dropped: int | None = None
        self._idled = -float("inf")
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
        if sensed.epoch != self._epoch:  # another robot, or it began anew
            self._epoch, self._mark, self._action = sensed.epoch, "", None
            self._plan.clear()
        self._listen(now)
        if (mark := mark_of(sensed, self._contract)) and mark != self._mark:
            self._mark, self._action, self._dropped = mark, None, None
        if self._policy.failure is not None:
            self._robot.trip("policy", self._policy.failure)
        if mark and mark == self._mark and not self._has_been_sent():
            return self._answer(sensed, now)
        return self._idle(sensed, now)

    def _listen(self, now: float) -> None:
        chunk = self._policy.answer()
        if chunk is not None and self._asked_in == self._epoch:
            self.timings.add("observation to answer", now - chunk.observed)
            self._plan.extend(enumerate(chunk.actions))

    def _has_been_sent(self) -> bool:
        return self._dropped is not None and self._io.status().counts.get(DROPPED, 0) == self._dropped

    def _answer(self, sensed: Sensed, now: float) -> Step | None:
        seen = observe(sensed, self._contract, self._task)
        assert seen
        assert sensed.newest
        if self._action is None:
            if not self._plan:
                if self._policy.ask(*seen):
                    self._asked_in = self._epoch
                return self._idle(sensed, now)
            self._action = self._plan.popleft()
        index, action = self._action
        observed = seen[1] - index * self._contract.period_s  # in the time of a world that stands still
        if self._robot.state is not State.ENABLED:
            return self._idle(sensed, now)
        decision = self._robot.step(motion.command(action, sensed.newest, self._contract, observed))
        if decision.passed is None:
            return Step(now, sensed, None, decision)
        again, self._dropped = self._dropped is not None, self._io.status().counts.get(DROPPED, 0)
        return Step(now, sensed, None if again else action, decision, observed)

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
