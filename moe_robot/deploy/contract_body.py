"""The robot's body in its contract: joints, tool and gripper, each checked on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_robot.deploy.contract_topics import check_topic
from moe_robot.deploy.typed_yaml import Inconsistent
from moe_robot.kinematics import SerialChain

Range = tuple[float, float]
Vector = tuple[float, float, float]
Box = tuple[Range, Range, Range]


@dataclass(frozen=True)
class Joint:
    """One revolute joint of the arm, with the fixed link before it as in URDF.

    Attributes:
        name: in the policy's state and action names.
        position: lower and upper limit, rad.
        velocity: largest speed that a command may ask for, from where the joint is measured to be, rad/s.
        step: largest change between two commands in a row, rad.
        topic_name: in JointState messages, where it differs from ``name``.
        xyz, rpy: the joint's frame in the frame of the joint before it (URDF's ``origin``), m and rad.
        axis: what it turns about, in its own frame; None when the contract gives no chain.
    """

    name: str
    position: Range
    velocity: float
    step: float
    topic_name: str | None = None
    xyz: Vector = (0.0, 0.0, 0.0)
    rpy: Vector = (0.0, 0.0, 0.0)
    axis: Vector | None = None

    def __post_init__(self) -> None:
        check_range("position", self.position)
        for key in ("velocity", "step"):
            if not getattr(self, key) > 0:
                raise Inconsistent(key, f"{getattr(self, key):g} is not above 0")
        if self.axis is not None and abs(math.hypot(*self.axis) - 1) > 1e-6:
            raise Inconsistent("axis", f"{list(self.axis)} has length {math.hypot(*self.axis):g}, expected 1")


@dataclass(frozen=True)
class Tool:
    """The point that Cartesian actions and the workspace speak of.

    Attributes:
        name: in the policy's state names, for example ``hand``.
        xyz, rpy: its frame in that of the last joint, m and rad.
        workspace: lower and upper x, y and z of the tool in the base frame, m; beyond it the safety gate stops it.
        speed: largest speed of a Cartesian action or a twist, m/s.
        turn: largest rate of turning of these, rad/s.
        goals: Cartesian actions are clipped to this box within the workspace; None for the workspace itself.
        yaw: they are clipped to this yaw, rad; None for any.
        attitude: roll, pitch and yaw that the tool keeps at yaw 0, rad; what actions with a yaw alone need.
        posture: (N,) joint positions that the arm drifts to as far as the tool's pose leaves it free, rad; what a
            Cartesian policy with a joint sink needs.
        speed_step, turn_step: largest change of these between two twists in a row; only a twist sink needs them.
    """

    name: str
    xyz: Vector
    rpy: Vector
    workspace: Box
    speed: float
    turn: float
    speed_step: float | None = None
    turn_step: float | None = None
    goals: Box | None = None
    yaw: Range | None = None
    attitude: Vector | None = None
    posture: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for key, box in (("workspace", self.workspace), ("goals", self.goals or self.workspace)):
            for side, limit in zip(box, self.workspace, strict=True):
                check_range(key, side)
                if side[0] < limit[0] or side[1] > limit[1]:
                    raise Inconsistent(key, f"{list(side)} is beyond the workspace {list(limit)}")
        if self.yaw is not None:
            check_range("yaw", self.yaw)
        for key in ("speed", "turn", "speed_step", "turn_step"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise Inconsistent(key, f"{getattr(self, key):g} is not above 0")

    def chain(self, joints: Sequence[Joint]) -> SerialChain:
        """The kinematic chain from the base through ``joints`` (which all have an axis) to this tool."""
        links = [*joints, self]
        return SerialChain(
            link_rotations=np.array([rpy_rotation(*link.rpy) for link in links]),
            link_positions=np.array([link.xyz for link in links]),
            axes=np.array([joint.axis for joint in joints], dtype=float),
            limits=np.array([joint.position for joint in joints]),
        )


@dataclass(frozen=True)
class Gripper:
    """How the policy's last action and the gripper's opening correspond.

    Attributes:
        joints: in JointState messages; their positions add up to the opening.
        opening: closed and open, in the units of those joints.
        action: the policy's action for closed and for open.
        command: what the controller is sent for closed and for open.
        topic: of its own ``std_msgs/msg/Float64MultiArray`` with one number.
    """

    joints: tuple[str, ...]
    opening: Range
    action: Range
    command: Range
    topic: str

    def __post_init__(self) -> None:
        check_topic(self.topic)
        check_range("opening", self.opening)
        if not self.joints:
            raise Inconsistent("joints", "there are none: name those whose positions add up to the opening")
        for key in ("action", "command"):
            closed, opened = getattr(self, key)
            if closed == opened:
                raise Inconsistent(key, f"closed and open are both {closed:g}: expected two different numbers")


def check_range(key: str, value: Range) -> None:
    """Refuse a range whose ends are in the wrong order."""
    if not value[0] < value[1]:
        raise Inconsistent(key, f"[{value[0]:g}, {value[1]:g}] is no range: expected the lower end first")


def rpy_rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """(3, 3): turns about the fixed x, y and z axes in this order, URDF's convention."""
    (cr, sr), (cp, sp), (cy, sy) = ((math.cos(angle), math.sin(angle)) for angle in (roll, pitch, yaw))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
