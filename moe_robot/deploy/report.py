"""What a deployment did: a line now and then for people, and a summary for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe_robot.deploy.decision import Failure, State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.loop import Step
from moe_robot.deploy.robot_io import RobotIO
from moe_robot.deploy.timings import Timings


class Report:
    """Follows the control loop step by step."""

    def __init__(
        self, robot: GuardedRobot, io: RobotIO, timings: Timings, say: Callable[[str], None], every_s: float = 2.0
    ) -> None:
        """``say`` is given a line every ``every_s`` seconds, and one with the reason when the state or rule changes."""
        self._robot, self._io, self._timings, self._say, self._every = robot, io, timings, say, every_s
        self._begun: float | None = None
        self._last = 0.0
        self._steps = self._passed = self._sent = 0
        self._steps_said = 0
        self._said_at = float("-inf")
        self._said: tuple[State, str] | None = None
        self._holds: list[Failure] = []

    def step(self, step: Step) -> None:
        """One more control step; for ``ControlLoop.run(on_step=...)``."""
        self._begun = step.at if self._begun is None else self._begun
        decision, self._last = step.decision, step.at
        self._steps += 1
        self._passed += decision.passed is not None
        self._sent += decision.send is not None and not decision.send.hold
        failure = decision.failure
        if failure and decision.state is State.HELD and failure not in self._holds[-1:]:
            self._holds.append(failure)
        now = (decision.state, failure.rule if failure else "")
        if now != self._said or step.at - self._said_at >= self._every:
            self._say(self._line(step, failure if now != self._said else None))
            self._said, self._said_at, self._steps_said = now, step.at, self._steps

    def end(self) -> None:
        """Hold the robot, for the program ends, and remember that if it was enabled."""
        was, decision = self._robot.state, self._robot.trip("operator", "the program ends")
        if was is State.ENABLED and decision.failure:
            self._holds.append(decision.failure)
            self._say(f"held: {decision.failure.message}")

    def summary(self) -> dict[str, Any]:
        """Plain data, seconds throughout. ``passed`` are the commands that kept every rule, ``sent`` those sent."""
        status, begun = self._io.status(), self._last if self._begun is None else self._begun
        return {
            "seconds": round(self._last - begun, 3),
            "steps": self._steps,
            "state": self._robot.state.value,
            "enablings": self._robot.enablings,
            "commands": {"passed": self._passed, "sent": self._sent},
            "holds": [
                {"at": round(hold.at - begun, 3), "rule": hold.rule, "message": hold.message} for hold in self._holds
            ],
            "connection": {"epoch": status.epoch, "counts": dict(status.counts), "trouble": status.trouble},
            "timings": self._timings.summary(),
        }

    def _line(self, step: Step, failure: Failure | None) -> str:
        assert self._begun is not None
        state = step.decision.state.value
        if step.decision.state is State.ENABLED:
            state += ", dry run" if self._robot.dry_run else ", live"
        parts = [f"{step.at - self._begun:6.1f} s  {state}"]
        if (since := step.at - self._said_at) < float("inf"):
            parts.append(f"{(self._steps - self._steps_said) / since:.1f} Hz")
        if answer := self._timings.summary().get("observation to answer"):
            parts.append(f"{1000 * answer['p50']:.0f} ms from picture to answer")
        status = self._io.status()
        if not status.connected:
            parts.append("no connection" + (f" ({status.trouble})" if failure and status.trouble else ""))
        if failure:
            parts.append("ready to be enabled" if failure.rule == "enabled" else failure.message)
        return "  ".join(parts)
