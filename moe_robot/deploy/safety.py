"""The safety gate: the one way from a policy to a robot. A pure state machine; the time is passed in.

It starts disabled. Whatever breaks a rule, it holds the robot, remembers why, and lets nothing through until somebody
enables it again. It is no emergency stop: that must be a button that cuts the power.
"""

from __future__ import annotations

import numpy as np

from moe_robot.deploy import freshness
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import Broken, Decision, Failure, State, failure
from moe_robot.deploy.robot_io import Command, GatedCommand, JointCommand, TwistCommand
from moe_robot.deploy.safety_rules import JointRules, TwistRules, measured_not_finite
from moe_robot.deploy.sync import Sensed


class SafetyGate:
    """Judges every command on its way to a robot. For one thread; :mod:`moe_robot.deploy.guard` is for several."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._rules = TwistRules(contract) if contract.command.sink == "twist" else JointRules(contract)
        self._state, self._live, self._failure = State.DISABLED, False, None
        self._epoch, self._beat = 0, 0.0
        self._last: GatedCommand | None = None

    @property
    def state(self) -> State:
        """Whether commands may pass."""
        return self._state

    @property
    def dry_run(self) -> bool:
        """Whether commands are judged and not sent: so until it is enabled live."""
        return not self._live

    def enable(self, sensed: Sensed, now: float, live: bool = False) -> Failure | None:
        """Let commands pass from now on; only when ``live`` do they reach the robot. The one way out of a hold.

        Returns:
            Why not, in which case nothing changes: a sensor is wrong, or it is enabled already. Else None.
        """
        broken = self._sensors(sensed, now)
        if not broken and (wrong := measured_not_finite(sensed.newest)):
            broken = "finite", wrong
        if self._state is State.ENABLED:  # perhaps in another way: what moves must be stopped first
            broken = "operator", "the robot is enabled already: stop it first"
        if broken:
            return failure(broken, now)
        self._state, self._live, self._failure, self._last = State.ENABLED, live, None, None
        self._epoch, self._beat = sensed.epoch, now
        return None

    def beat(self, now: float) -> None:
        """The operator says that all is well."""
        self._beat = now

    def check(self, command: Command | None, sensed: Sensed, now: float) -> Decision:
        """Judge one command. Call it in every control step, with None when there is none, and send ``send`` at once."""
        broken = None
        if command is not None:
            command, broken = _numbers(command)
            broken = broken or self._rules.broken(command, self._due(now), sensed.newest)
        broken = broken or self._times(command, sensed, now) or self._permission(sensed, now)
        if broken:
            return self._stop(broken, sensed, now)
        if command is None:
            return Decision(None, None, None, self._state)
        self._last = GatedCommand(command, now, sensed.epoch)
        return Decision(self._last if self._live else None, self._last, None, self._state)

    def trip(self, rule: str, wrong: str, sensed: Sensed | None, now: float) -> Decision:
        """Hold for a reason from outside: the watchdog or the operator. Nothing happens when it is not enabled."""
        return self._stop((rule, wrong), sensed, now)

    def _sensors(self, sensed: Sensed, now: float) -> Broken | None:
        if wrong := freshness.stale(self._contract, sensed, now):
            return "freshness", wrong
        if wrong := freshness.skewed(self._contract, sensed):
            return "skew", wrong
        return None

    def _times(self, command: Command | None, sensed: Sensed, now: float) -> Broken | None:
        if broken := self._sensors(sensed, now):
            return broken
        if command is not None:
            wrong = freshness.outdated(self._contract, command, now)
            return ("freshness", wrong) if wrong else None
        if self._last is not None and isinstance(self._last.command, TwistCommand):
            return "freshness", "the policy gave no command, and the tool would move on at the last one's speed"
        return None

    def _permission(self, sensed: Sensed, now: float) -> Broken | None:
        if self._state is not State.ENABLED:
            return "enabled", "the robot is not enabled"
        if sensed.epoch != self._epoch:
            return "epoch", "the connection or the robot's clock began anew"
        ago, allowed = now - self._beat, self._contract.heartbeat_s
        if not 0 <= ago <= allowed:
            return "heartbeat", f"the last was {ago:.3f} s ago, allowed are {allowed:g} s"
        return None

    def _stop(self, broken: Broken, sensed: Sensed | None, now: float) -> Decision:
        reason = failure(broken, now)
        if self._state is not State.ENABLED:
            return Decision(None, None, self._failure or reason, self._state)
        hold = self._hold(sensed, now)
        self._state, self._failure = State.HELD, reason
        return Decision(hold if self._live else None, None, reason, self._state)

    def _hold(self, sensed: Sensed | None, now: float) -> GatedCommand | None:
        """What stops the robot: zero speed, or the place where it is. The gripper stays as it is.

        Where that is not known, or is outside the limits, the place where the last command wanted it to be by now.
        """
        if isinstance(self._rules, TwistRules):
            return GatedCommand(TwistCommand(_frozen(np.zeros(6)), None, now), now, self._epoch, hold=True)
        limit = self._contract.joint_states.max_age_s
        measured = sensed.newest if sensed and sensed.epoch == self._epoch else None
        if measured is not None and not freshness.wrong_age(measured.sensed, measured.received, limit, now):
            command = JointCommand(_frozen(np.array([measured.positions], dtype=float)), None, now)
            if command.positions.shape == (1, len(self._contract.joints)) and self._rules.keeps_inside(command):
                return GatedCommand(command, now, self._epoch, hold=True)
        due = self._due(now)
        if due is None:
            return None  # nothing was sent since it was enabled, so there is nothing to take back
        return GatedCommand(JointCommand(_frozen(due[None].copy()), None, now), now, self._epoch, hold=True)

    def _due(self, now: float) -> np.ndarray | None:
        """What the last command asks for by now: joint positions (N,) or a twist (6,)."""
        if self._last is None:
            return None
        command = self._last.command
        if isinstance(command, TwistCommand):
            return command.twist
        steps = round((now - self._last.at) / self._contract.period_s)
        return command.positions[min(max(steps - 1, 0), len(command.positions) - 1)]


def _numbers(command: Command) -> tuple[Command, Broken | None]:
    """The command with its own copy of its arrays, as float64 that nobody can write to."""
    twist = isinstance(command, TwistCommand)
    try:
        values = _frozen(np.array(command.twist if twist else command.positions, dtype=float))
        opening = None if command.opening is None else float(command.opening)
    except (TypeError, ValueError, OverflowError):
        return command, ("shape", "the command is not made of numbers")
    if twist:
        return TwistCommand(values, opening, command.observed), None
    return JointCommand(values, opening, command.observed, command.mark), None


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
