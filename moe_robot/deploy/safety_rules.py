"""The safety gate's rules about one command: finite, shape, joint limits, velocity, step, workspace (pure, numpy only).

N joints; K points of a chunk, one control step apart. Rules are asked in the order of their names here, and the first
that is broken is told. The rules about time are in :mod:`moe_robot.deploy.freshness`.
"""

from __future__ import annotations

import math

import numpy as np

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import Broken
from moe_robot.deploy.robot_io import Command, JointCommand, JointState, TwistCommand

SLACK = 1e-9
"""Of every limit, in its unit: a command that was clipped to a limit is not beyond it by rounding."""


class JointRules:
    """What a command of joint positions must keep to."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._names = [joint.name for joint in contract.joints]
        limits = np.array([joint.position for joint in contract.joints])
        self._lower, self._upper = limits[:, 0] - SLACK, limits[:, 1] + SLACK
        self._reach = np.array([joint.velocity for joint in contract.joints]) * contract.period_s + SLACK
        self._step = np.array([joint.step for joint in contract.joints]) + SLACK
        self._n, self._one_point = (len(self._names),), (1, len(self._names))
        self._limits = np.stack([self._lower, self._upper, self._reach, self._step], axis=1).tolist()
        self._chunks = contract.command.sink == "trajectory"
        self._workspace = _Workspace(contract) if contract.tool else None

    def broken(self, command: Command, previous: np.ndarray | None, measured: JointState | None) -> Broken | None:
        """The first rule that ``command`` breaks, or None.

        Args:
            command: a joint command in finite or other numbers, of any shape.
            previous: (N,) where the command before wanted the joints to be now; None at first.
            measured: where the robot is. Without it its velocity is not judged, and freshness is broken anyway.
        """
        if not isinstance(command, JointCommand):
            return "shape", "this is a twist, and the robot takes joint positions"
        positions = command.positions
        if not self._plainly_kept(command, previous, measured) and (
            broken := self._first_broken(command, previous, measured)
        ):
            return broken
        if self._workspace and (wrong := self._workspace.left_by(positions)):
            return "workspace", wrong
        return None

    def _plainly_kept(self, command: JointCommand, previous: np.ndarray | None, measured: JointState | None) -> bool:
        """Whether one point keeps every rule but the workspace: :meth:`_first_broken` on floats, in less time.

        So written, NaN keeps nothing. What is not one point, or a measurement that is not whole, is left to the other.
        """
        if measured is None or command.positions.shape != self._one_point or measured.positions.shape != self._n:
            return False
        if measured.velocities is not None and not all(map(math.isfinite, measured.velocities.ravel().tolist())):
            return False
        if measured.opening is not None and not math.isfinite(measured.opening):
            return False
        if _no_gripper(self._contract, command) or _beyond_opening(self._contract, command):
            return False
        at, point = measured.positions.tolist(), command.positions[0].tolist()
        before = point if previous is None else previous.tolist()
        return all(
            low <= x <= high and abs(x - m) <= reach and abs(x - b) <= step
            for x, m, b, (low, high, reach, step) in zip(point, at, before, self._limits, strict=True)
        )

    def _first_broken(
        self, command: JointCommand, previous: np.ndarray | None, measured: JointState | None
    ) -> Broken | None:
        """The first rule but the workspace that a command breaks, with its numbers."""
        positions = command.positions
        if wrong := _not_finite(positions, command.opening, measured):
            return "finite", wrong
        if wrong := self._misshapen(command, measured):
            return "shape", wrong
        if wrong := self._beyond_joint_limits(command):
            return "joint limits", wrong
        if measured is not None and (wrong := self._too_far(measured.positions, positions, self._reach)):
            return "velocity", f"{wrong} from where it is measured to be"
        if previous is not None and (wrong := self._too_far(previous, positions, self._step)):
            return "step", f"{wrong} from the command before"
        return None

    def keeps_inside(self, command: JointCommand) -> bool:
        """Whether all points are finite and within the joint limits and the workspace."""
        if _not_finite(command.positions, command.opening, None) or self._beyond_joint_limits(command):
            return False
        return not (self._workspace and self._workspace.left_by(command.positions))

    def _misshapen(self, command: JointCommand, measured: JointState | None) -> str | None:
        n, shape = len(self._names), command.positions.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] != n:
            return f"the joint positions have shape {shape}, expected (K, {n})"
        if shape[0] > 1 and not self._chunks:
            return f"the chunk has {shape[0]} points, and the robot takes one at a time"
        return _measured_misshapen(measured, n) or _no_gripper(self._contract, command)

    def _beyond_joint_limits(self, command: JointCommand) -> str | None:
        outside = (command.positions < self._lower) | (command.positions > self._upper)
        if outside.any():
            k, i = np.argwhere(outside)[0]
            low, high = self._contract.joints[i].position
            return f"{self._names[i]} would go to {command.positions[k, i]:.4f} rad, allowed are {low:g} to {high:g}"
        return _beyond_opening(self._contract, command)

    def _too_far(self, start: np.ndarray, positions: np.ndarray, limit: np.ndarray) -> str | None:
        """Whether a step of the path from ``start`` (N,) through ``positions`` (K, N) is longer than ``limit`` (N,)."""
        change = np.abs(np.diff(positions, axis=0, prepend=start[None]))
        if (change <= limit).all():
            return None
        k, i = np.argwhere(change > limit)[0]
        return f"{self._names[i]} would move {change[k, i]:.4f} rad in one step, allowed are {limit[i]:.4f},"


class TwistRules:
    """What a command of tool velocities must keep to. The workspace is asked of where it leads in one control step."""

    def __init__(self, contract: Contract) -> None:
        assert contract.tool is not None
        self._contract, self._tool, self._workspace = contract, contract.tool, _Workspace(contract)

    def broken(self, command: Command, previous: np.ndarray | None, measured: JointState | None) -> Broken | None:
        """As in :class:`JointRules`; ``previous`` is the twist before, (6,)."""
        if not isinstance(command, TwistCommand):
            return "shape", "these are joint positions, and the robot takes twists"
        twist, tool = command.twist, self._tool
        if wrong := _not_finite(twist, command.opening, measured):
            return "finite", wrong
        if twist.shape != (6,):
            return "shape", f"the twist has shape {twist.shape}, expected (6,)"
        n = len(self._contract.joints)
        if wrong := _measured_misshapen(measured, n) or _no_gripper(self._contract, command):
            return "shape", wrong
        if wrong := _beyond_opening(self._contract, command):
            return "joint limits", wrong
        if wrong := _too_fast(twist, tool.speed, tool.turn):
            return "velocity", wrong
        change = twist - (0.0 if previous is None else previous)
        if wrong := _too_fast(change, tool.speed_step or 0.0, tool.turn_step or 0.0):
            return "step", f"{wrong}, of change from the command before"
        if measured is not None and (wrong := self._workspace.left_after(measured.positions, twist)):
            return "workspace", wrong
        return None


class _Workspace:
    """The box that the tool must stay in."""

    def __init__(self, contract: Contract) -> None:
        assert contract.tool is not None
        assert contract.chain is not None
        self._tool, self._chain, self._period = contract.tool, contract.chain, contract.period_s
        box = np.array(contract.tool.workspace)
        self._low, self._high = (box[:, 0] - SLACK).tolist(), (box[:, 1] + SLACK).tolist()

    def left_by(self, positions: np.ndarray) -> str | None:
        """What is wrong with the tool at one of the joint positions (K, N)."""
        return next((wrong for q in positions if (wrong := self._outside(self._chain.position(q)))), None)

    def left_after(self, q: np.ndarray, twist: np.ndarray) -> str | None:
        """What is wrong with the tool after one control step of ``twist`` (6,) from the joint positions ``q`` (N,)."""
        return self._outside(self._chain.position(q) + twist[:3] * self._period)

    def _outside(self, point: np.ndarray) -> str | None:
        if all(low <= x <= high for x, low, high in zip(point.tolist(), self._low, self._high, strict=True)):
            return None
        outside = ~((np.array(self._low) <= point) & (point <= self._high))
        i = int(np.argmax(outside))
        low, high = self._tool.workspace[i]
        return f"{self._tool.name}.{'xyz'[i]} would be {point[i]:.4f} m, allowed are {low:g} to {high:g}"


def _not_finite(values: np.ndarray, opening: float | None, measured: JointState | None) -> str | None:
    if not np.isfinite(values).all() or (opening is not None and not np.isfinite(opening)):
        return "the command holds NaN or infinity"
    return measured_not_finite(measured)


def measured_not_finite(measured: JointState | None) -> str | None:
    """Which part of a measurement is no number, or None."""
    if measured is None:
        return None
    speeds, at = measured.velocities, measured.opening
    if not np.isfinite(measured.positions).all() or (speeds is not None and not np.isfinite(speeds).all()):
        return "the measured joint positions or velocities hold NaN or infinity"
    return "the measured opening of the gripper is NaN or infinity" if at is not None and not np.isfinite(at) else None


def _measured_misshapen(measured: JointState | None, n: int) -> str | None:
    if measured is None or measured.positions.shape == (n,):
        return None
    return f"the measured joint positions have shape {measured.positions.shape}, expected ({n},)"


def _no_gripper(contract: Contract, command: Command) -> str | None:
    no_gripper = command.opening is not None and contract.gripper is None
    return "the command has an opening, and the robot no gripper" if no_gripper else None


def _beyond_opening(contract: Contract, command: Command) -> str | None:
    if command.opening is None or contract.gripper is None:
        return None
    low, high = contract.gripper.opening
    if low - SLACK <= command.opening <= high + SLACK:
        return None
    return f"the gripper would open to {command.opening:.4f}, allowed are {low:g} to {high:g}"


def _too_fast(twist: np.ndarray, speed: float, turn: float) -> str | None:
    linear, angular = float(np.linalg.norm(twist[:3])), float(np.linalg.norm(twist[3:]))
    if linear > speed + SLACK:
        return f"the tool would move at {linear:.4f} m/s, allowed are {speed:g}"
    if angular > turn + SLACK:
        return f"the tool would turn at {angular:.4f} rad/s, allowed are {turn:g}"
    return None
