"""From what was sensed to the policy's observation: pictures, and the state vector in the contract's order."""

from __future__ import annotations

import math

import numpy as np

from moe_robot.deploy.contract import GRIPPER_STATE, TOOL_STATES, Contract
from moe_robot.deploy.robot_io import JointState
from moe_robot.deploy.sync import Sensed
from moe_robot.types import Observation, UserError


def observe(sensed: Sensed, contract: Contract, task: str) -> tuple[Observation, float] | None:
    """The observation and when it was sensed, the oldest of its parts; None while a sensor has told nothing yet.

    Raises:
        UserError: the policy's state has velocities, and the robot does not tell them.
    """
    if sensed.joints is None or any(name not in sensed.images for name in contract.cameras):
        return None
    images = {name: sensed.images[name] for name in contract.cameras}
    when = min([sensed.joints.sensed, *(image.sensed for image in images.values())])
    pixels = {name: image.pixels for name, image in images.items()}
    return Observation(pixels, state_vector(sensed.joints, contract), task), when


def state_vector(joints: JointState, contract: Contract) -> np.ndarray:
    """(S,) float32, in the order of the contract's ``state``."""
    known = {f"{joint.name}.pos": value for joint, value in zip(contract.joints, joints.positions, strict=True)}
    if joints.velocities is not None:
        known |= {f"{joint.name}.vel": value for joint, value in zip(contract.joints, joints.velocities, strict=True)}
    if joints.opening is not None:
        known[GRIPPER_STATE] = joints.opening
    if contract.tool and contract.chain:
        position, rotation = contract.chain.forward(joints.positions)
        pose = (*position, math.atan2(rotation[1, 0], rotation[0, 0]))
        known |= {f"{contract.tool.name}.{what}": value for what, value in zip(TOOL_STATES, pose, strict=True)}
    untold = [name for name in contract.state if name not in known]
    if untold:
        topic = contract.joint_states.topic
        raise UserError(f"the policy's state has {untold[0]!r}, and {topic} tells no velocities: have it publish them")
    return np.array([known[name] for name in contract.state], dtype=np.float32)
