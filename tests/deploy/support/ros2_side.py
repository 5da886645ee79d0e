"""The robot's side of ROS 2 for tests: what it tells, made by hand, and how to wait until it is heard."""

import time

import cv2
import numpy as np
from bridge_server import wait_until

from moe_robot.deploy.robot_io import GatedCommand, JointCommand

STATES, FRONT, COMMANDS = "/joint_states", "/front/image_raw/compressed", "/forward_position_controller/commands"
POSITION, GRIPPER = "std_msgs/msg/Float64MultiArray", "/gripper_controller/commands"
PICTURE = (np.arange(96 * 96 * 3) % 251).astype(np.uint8).reshape(96, 96, 3)


def header(stamp=None):
    second, nanosecond = divmod(round((stamp or time.time()) * 1e9), 10**9)
    return {"header": {"stamp": {"sec": second, "nanosec": nanosecond}, "frame_id": "arm"}}


def tell_all(server, contract):
    """One picture of each camera and a joint state, stamped now."""
    encoded = cv2.imencode(".png", cv2.cvtColor(PICTURE, cv2.COLOR_RGB2BGR))[1].tobytes()
    for camera in contract.cameras.values():
        server.tell(camera.topic, header() | {"format": "png", "data": encoded})
    names = [*contract.topic_names, *contract.gripper.joints]
    positions = np.concatenate([np.array(contract.tool.posture), [0.01, 0.02]])
    order = np.random.default_rng(0).permutation(len(names))
    state = {"name": [names[i] for i in order], "position": positions[order], "velocity": np.zeros(9), "effort": []}
    server.tell(STATES, header() | state)


def hear(io, server, contract):
    def heard():
        tell_all(server, contract)
        snapshot = io.latest()
        return snapshot.joints and len(snapshot.images) == 2

    wait_until(heard, "messages")


def send(io, positions, opening=None, epoch=None):
    command = JointCommand(np.array([positions]), opening, io.now())
    return io.send(GatedCommand(command, io.now(), io.epoch if epoch is None else epoch))
