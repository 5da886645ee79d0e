"""From a policy's action to a command, as the contract says what its numbers mean. Nothing is remembered between steps.

The same action from the same measured state always gives the same command, and one that the robot can follow: shortened
to the contract's speeds and clipped to its limits. The safety gate judges it nevertheless.
"""

from __future__ import annotations

import math

import numpy as np

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.contract_body import rpy_rotation
from moe_robot.deploy.robot_io import Command, JointCommand, JointState, TwistCommand
from moe_robot.kinematics import yaw_rotation

IK_ITERATIONS = 3
"""Of the inverse kinematics per control step, as in PitStop: the way of one step is short."""


def command(
    action: np.ndarray, measured: JointState, contract: Contract, observed: float, before: np.ndarray | None = None
) -> Command:
    """The command of one control step.

    Args:
        action: (A,) of the policy, in its units.
        measured: where the robot is now.
        contract: of the robot.
        observed: when what the policy answered was sensed.
        before: (6,) the twist of the step before, for a twist sink; None for standstill.
    """
    action = np.asarray(action, dtype=float)
    units = np.array(contract.action.units)
    way = _clipped(action[: len(units)], contract.action.clip) * units
    opening = _opening(float(action[-1]), contract) if contract.gripper else None
    q = measured.positions
    if contract.command.sink == "twist":
        return TwistCommand(_twist(way, contract, np.zeros(6) if before is None else before), opening, observed)
    if contract.action.meaning == "cartesian_delta":
        target = _reached(way, q, contract)
    else:
        target = way if contract.action.meaning == "joint_position" else q + way
    limits = np.array([joint.position for joint in contract.joints])
    reach = np.array([joint.velocity for joint in contract.joints]) * contract.period_s
    change = target - q
    change *= _fraction(float(np.max(np.abs(change) / reach)), 1.0)
    return JointCommand(np.clip(q + change, limits[:, 0], limits[:, 1])[None], opening, observed)


def _clipped(action: np.ndarray, clip: tuple[float, float] | None) -> np.ndarray:
    # An infinite number is not made a finite one: the safety gate stops the robot for it.
    return action if clip is None else np.where(np.isinf(action), action, np.clip(action, *clip))


def _opening(action: float, contract: Contract) -> float:
    assert contract.gripper is not None
    (closed, opened), (low, high) = contract.gripper.action, contract.gripper.opening
    share = min(max((action - closed) / (opened - closed), 0.0), 1.0)
    return low + share * (high - low)


def _shortened(way: np.ndarray, contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """Way (3,) in metres and turn (3,), a rotation vector, that the tool can go in one control step."""
    tool, period = contract.tool, contract.period_s
    assert tool is not None
    turn = np.zeros(3)
    if len(way) == 4:
        turn[2] = way[3]
    elif len(way) == 6:
        turn = way[3:]
    line = way[:3] * _fraction(float(np.linalg.norm(way[:3])), tool.speed * period)
    return line, turn * _fraction(float(np.linalg.norm(turn)), tool.turn * period)


def _reached(way: np.ndarray, q: np.ndarray, contract: Contract) -> np.ndarray:
    """Joint positions (N,) that bring the tool as far as ``way`` goes in one control step."""
    tool, chain = contract.tool, contract.chain
    assert tool is not None
    assert chain is not None
    line, turn = _shortened(way, contract)
    position, rotation = chain.forward(q)
    goals = np.array(tool.goals or tool.workspace)
    goal = np.clip(position + line, goals[:, 0], goals[:, 1])
    if len(way) == 4:
        yaw = math.atan2(rotation[1, 0], rotation[0, 0]) + turn[2]
        yaw = min(max(yaw, tool.yaw[0]), tool.yaw[1]) if tool.yaw else yaw
        rotation = yaw_rotation(yaw) @ rpy_rotation(*(tool.attitude or (0.0, 0.0, 0.0)))
    elif len(way) == 6:
        rotation = _rotation(turn) @ rotation
    return chain.solve(q, goal, rotation, np.array(tool.posture), IK_ITERATIONS)


def _twist(way: np.ndarray, contract: Contract, before: np.ndarray) -> np.ndarray:
    """(6,): the speeds of ``way``, as far as they may change within one step."""
    tool = contract.tool
    assert tool is not None
    change = np.concatenate(_shortened(way, contract)) / contract.period_s - before
    change[:3] *= _fraction(float(np.linalg.norm(change[:3])), tool.speed_step or math.inf)
    change[3:] *= _fraction(float(np.linalg.norm(change[3:])), tool.turn_step or math.inf)
    return before + change


def _fraction(length: float, limit: float) -> float:
    return 1.0 if length <= limit else limit / length


def _rotation(vector: np.ndarray) -> np.ndarray:
    """(3, 3) from a rotation vector (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = vector / angle
    k = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * k + (1.0 - math.cos(angle)) * k @ k
