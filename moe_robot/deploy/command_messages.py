"""From a command that the gate let through to ROS messages as plain dicts, by topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.robot_io import Command, JointCommand, TwistCommand

GRIPPER_TYPE = "std_msgs/msg/Float64MultiArray"


def topics(contract: Contract) -> dict[str, str]:
    """Topic -> message type of everything that is sent to the robot."""
    gripper = {contract.gripper.topic: GRIPPER_TYPE} if contract.gripper else {}
    return {contract.command.topic: contract.command.type} | gripper


def messages(command: Command, contract: Contract, stamp: float) -> dict[str, dict[str, Any]]:
    """Topic -> message. Every field is there, for a bridge would fill in what is missing.

    Args:
        command: from the gate.
        contract: of the robot.
        stamp: now, on the robot's clock, seconds; only a TwistStamped carries it.
    """
    sent: dict[str, dict[str, Any]] = {}
    if isinstance(command, TwistCommand):
        header = {"stamp": _time(stamp, contract), "frame_id": contract.command.frame}
        linear, angular = _vector(command.twist[:3]), _vector(command.twist[3:])
        sent[contract.command.topic] = {"header": header, "twist": {"linear": linear, "angular": angular}}
    elif contract.command.sink == "trajectory":
        sent[contract.command.topic] = {
            # A stamp of 0 means "from now on"; one in the past would have the controller drop the trajectory.
            "header": {"stamp": _time(0.0, contract), "frame_id": ""},
            "joint_names": list(contract.topic_names),
            "points": [
                {
                    "positions": point.tolist(),
                    "velocities": [],
                    "accelerations": [],
                    "effort": [],
                    "time_from_start": _time((k + 1) * contract.period_s, contract),
                }
                for k, point in enumerate(command.positions)
            ],
        }
    else:
        sent[contract.command.topic] = _array(command.positions[0].tolist(), command.mark)
    if contract.gripper and command.opening is not None:
        (closed, opened), (low, high) = contract.gripper.opening, contract.gripper.command
        share = (command.opening - closed) / (opened - closed)
        mark = command.mark if isinstance(command, JointCommand) else ""
        sent[contract.gripper.topic] = _array([low + share * (high - low)], mark)
    return sent


def mark_of(message: Mapping[str, Any]) -> str:
    """The moment that a Float64MultiArray answers, empty for none: controllers do not read its layout."""
    try:
        return str(message["layout"]["dim"][0]["label"])
    except (KeyError, IndexError, TypeError):
        return ""


def _array(values: list[float], mark: str) -> dict[str, Any]:
    dimensions = [{"label": mark, "size": len(values), "stride": len(values)}] if mark else []
    return {"layout": {"dim": dimensions, "data_offset": 0}, "data": values}


def _vector(xyz: np.ndarray) -> dict[str, float]:
    return dict(zip("xyz", xyz.tolist(), strict=True))


def _time(seconds: float, contract: Contract) -> dict[str, int]:
    """A ROS time or duration, as ROS 1 or ROS 2 spells it."""
    whole, rest = divmod(round(seconds * 1e9), 10**9)
    return {"sec": whole, "nanosec": rest} if contract.ros == 2 else {"secs": whole, "nsecs": rest}
