"""A policy on a robot that others start and stop: it is loaded, checked, and controls in a thread of its own.

``moe-robot deploy`` runs the same parts in the foreground. The robot stands behind the safety gate here too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.inference import Act, PolicyProcess
from moe_robot.deploy.loop import ControlLoop, Step
from moe_robot.deploy.report import Report
from moe_robot.deploy.robot_io import RobotIO
from moe_robot.processes import workers_are_born
from moe_robot.types import UserError


class Deployment:
    """One policy on one robot, from loading to its end. Enabling and stopping are for any thread, the rest for one."""

    def __init__(
        self,
        contract: Contract,
        make: Callable[[], Act],
        task: str,
        io: RobotIO,
        say: Callable[[str], None],
        live: bool = False,
        decay: float | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            contract: of the robot.
            make: loads the policy in a process of its own, see :class:`moe_robot.deploy.inference.PolicyProcess`.
            task: the instruction to begin with.
            io: the robot, which nobody else may send to.
            say: shows a line.
            live: whether enabling lets commands reach the robot.
            decay: of blended chunks, see :class:`moe_robot.deploy.chunks.ChunkBuffer`.
        """
        self._live, self._say = live, say
        self.robot = GuardedRobot(io, contract)
        self._policy = PolicyProcess(make)
        self._loop = ControlLoop(self.robot, contract, self._policy, task, decay)
        self._report = Report(self.robot, io, self._loop.timings, say)
        self._resting = threading.Event()
        self._thread: threading.Thread | None = None
        self.step: Step | None = None
        """The latest control step; None while the loop rests."""
        self.failure: str | None = None
        """Why the control loop ended by itself, one line."""

    def load(self, patience_s: float = 300.0) -> None:
        """Load the policy, check it against the contract, and listen to the robot, which is disabled.

        Raises:
            UserError: the policy cannot be loaded or would misread the robot.
        """
        with workers_are_born():
            self._policy.start()
        end = time.monotonic() + patience_s
        if not self._policy.wait_until_ready(lambda: time.monotonic() > end):
            raise UserError(f"the policy was not loaded within {patience_s:g} s")
        self.robot.start()

    def run(self) -> None:
        """Begin to control: from now on the robot may be enabled."""
        self._resting.clear()
        self._thread = threading.Thread(target=self._control, name="control loop", daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """Hold the robot and control it no more, until :meth:`run`."""
        self.robot.trip("operator", "the node was deactivated")
        self._resting.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self.step = None, None

    def end(self) -> None:
        """Hold the robot, let go of it, and end the policy. Safe to call again."""
        self.rest()
        self.robot.stop()
        self._policy.stop()

    @property
    def running(self) -> bool:
        """Whether the robot is controlled, and may be enabled."""
        return self._thread is not None and self.failure is None

    def enable(self) -> str | None:
        """Let commands pass; why not, or None."""
        if not self.running:
            return self.failure or "the control loop rests: activate the node first"
        refusal = self.robot.enable(self._live)
        return refusal.message if refusal else None

    def instruct(self, task: str) -> None:
        """Follow another instruction from the next control step on."""
        self._loop.instruct(task)

    def timings(self) -> dict[str, float]:
        """Stage of the loop -> its 99th percentile, seconds."""
        return {stage: told["p99"] for stage, told in self._loop.timings.summary().items()}

    def _control(self) -> None:
        try:
            self._loop.run(self._resting.is_set, self._note)
        except Exception as error:  # whatever it is: the robot is held, and the reason told
            self.failure = " ".join(f"the control loop ended: {error}".split())
            self.robot.trip("watchdog", self.failure)
            self._say(self.failure)

    def _note(self, step: Step) -> None:
        self.step = step
        self._report.step(step)
