"""Turns an action into arm motion: from the measured pose, at limited speed, with nothing remembered between steps.

An action names a waypoint relative to where the hand (or each joint) is *measured* to be now; it may lie far beyond one
control step. The arm moves toward it as far as the speed limit allows in one step. Because the next step starts from
the next measurement, the same state and action always give the same motion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_envs.pitstop.dimensions import MAX_OPENING
from moe_envs.pitstop.panda import DOWN, POSTURE
from moe_robot.kinematics import SerialChain, wrap_angle, yaw_rotation

CONTROLS = ("cartesian", "joint")
POSITION_UNIT = 0.40  # metres of dx, dy, dz at an action of 1
YAW_UNIT = math.pi / 2  # radians of dyaw at an action of 1
JOINT_UNIT = 1.0  # radians of each joint at an action of 1
SPEED, YAW_SPEED = 0.40, 2.0  # m/s, rad/s
JOINT_SPEED = 1.5  # rad/s, of the fastest joint
MAX_JOINT_SPEED = 2.5  # rad/s, whatever the control: near a singularity a short way for the hand is long for a joint
WORKSPACE = np.array([[0.26, 0.74], [-0.48, 0.48], [0.006, 0.45]])  # of the tool; below, the pads would hit the table
MAX_HAND_YAW = 1.3
SERVO_LEAD = 0.1
"""Seconds by which the servo's reference runs ahead. The model's servos obey q' = (kp / kv)(reference - q) with
kv / kp = 0.1 s in every joint, so a reference this far ahead on a straight line is followed without lag."""
IK_ITERATIONS = 3

CARTESIAN_NAMES = ("hand.dx", "hand.dy", "hand.dz", "hand.dyaw", "gripper")
JOINT_NAMES = (*(f"joint{i}.delta" for i in range(1, 8)), "gripper")
STATE_NAMES = (
    *(f"joint{i}.pos" for i in range(1, 8)),
    *(f"joint{i}.vel" for i in range(1, 8)),
    "gripper.opening",
    "hand.x",
    "hand.y",
    "hand.z",
    "hand.yaw",
)
STATE_BOUND = np.array([2 * math.pi] * 7 + [30.0] * 7 + [0.1] + [1.5] * 3 + [math.pi + 1e-3], dtype=np.float32)
"""Wide bounds of the state vector: never reached, but finite, as Gymnasium asks."""


@dataclass(frozen=True)
class Motion:
    """What the servos are asked for during one control step, and until another motion begins.

    Attributes:
        start: (7,) measured joint positions, rad.
        velocity: (7,) constant joint velocity, rad/s.
        opening: distance between the finger pads, metres.
        period: length of the control step, seconds.
    """

    start: np.ndarray
    velocity: np.ndarray
    opening: float
    period: float

    def reference(self, seconds: float) -> np.ndarray:
        """(7,) joint references ``seconds`` into the step; after its end the place where it ends."""
        return self.start + self.velocity * (seconds + SERVO_LEAD if seconds < self.period else self.period)


def tool_pose(chain: SerialChain, q: np.ndarray) -> tuple[np.ndarray, float]:
    """Tool position (3,) and yaw of the hand at joint positions ``q`` (7,)."""
    position, rotation = chain.forward(q)
    return position, math.atan2(rotation[1, 0], rotation[0, 0])


def shorten(action: np.ndarray, control: str, period: float) -> np.ndarray:
    """The action whose waypoint is what the arm can reach within one control step of ``period`` seconds."""
    action = np.array(action, dtype=float)
    if control == "joint":
        action[:7] *= _fraction(float(np.max(np.abs(action[:7]))) * JOINT_UNIT, JOINT_SPEED * period)
    else:
        action[:3] *= _fraction(float(np.linalg.norm(action[:3])) * POSITION_UNIT, SPEED * period)
        action[3] *= _fraction(abs(float(action[3])) * YAW_UNIT, YAW_SPEED * period)
    return action


def plan(chain: SerialChain, q: np.ndarray, action: np.ndarray, control: str, period: float) -> Motion:
    """The motion of one control step of ``period`` seconds from measured joint positions ``q`` (7,)."""
    action = shorten(np.clip(action, -1.0, 1.0), control, period)
    if control == "joint":
        target = q + JOINT_UNIT * action[:7]
    else:
        position, yaw = tool_pose(chain, q)
        goal = np.clip(position + POSITION_UNIT * action[:3], WORKSPACE[:, 0], WORKSPACE[:, 1])
        goal_yaw = min(max(yaw + YAW_UNIT * float(action[3]), -MAX_HAND_YAW), MAX_HAND_YAW)
        target = chain.solve(q, goal, yaw_rotation(goal_yaw) @ DOWN, POSTURE, IK_ITERATIONS)
    return motion_to(chain, q, target, MAX_OPENING * 0.5 * (float(action[-1]) + 1.0), period)


def motion_to(chain: SerialChain, q: np.ndarray, target: np.ndarray, opening: float, period: float) -> Motion:
    """The motion of one control step from ``q`` to ``target`` (7,), or as far towards it as the joints may go in it."""
    velocity = (np.clip(target, chain.limits[:, 0], chain.limits[:, 1]) - q) / period
    velocity *= _fraction(float(np.max(np.abs(velocity))), MAX_JOINT_SPEED)
    return Motion(q.copy(), velocity, opening, period)


def joint_action(chain: SerialChain, q: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The ``joint`` action (8,) whose waypoint is that of a ``cartesian`` action (5,), from joint positions ``q``."""
    position, yaw = tool_pose(chain, q)
    goal = np.clip(position + POSITION_UNIT * action[:3], WORKSPACE[:, 0], WORKSPACE[:, 1])
    goal_yaw = wrap_angle(yaw + YAW_UNIT * float(action[3]))
    target = chain.solve(q, goal, yaw_rotation(goal_yaw) @ DOWN, POSTURE, iterations=12)
    change = (target - q) / JOINT_UNIT
    return np.append(change * _fraction(float(np.max(np.abs(change))), 1.0), action[4])


def _fraction(length: float, limit: float) -> float:
    return 1.0 if length <= limit else limit / length
