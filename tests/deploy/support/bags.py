"""Recordings as other tools write them, and a policy for the tests of ours."""

from __future__ import annotations

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_typestore

import policies
from moe_robot.deploy.chunks import Chunk

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])
TASK = "turn the nut"
BEGIN = 1_700_000_000.0
SECONDS = 2.0


def messages(contract, store, late=0.01, ros=2):
    """(seconds, topic, type, message) of a robot at rest whose first joint turns by 0.1 rad/s."""
    types = store.types

    def header(at):
        stamp = types["builtin_interfaces/msg/Time"](int(BEGIN + at), round((BEGIN + at) % 1 * 1e9))
        numbered = {"seq": 0} if ros == 1 else {}
        return types["std_msgs/msg/Header"](stamp=stamp, frame_id="", **numbered)

    names, empty = [*contract.topic_names, *contract.gripper.joints], np.zeros(0)
    told = []
    for tick in range(int(SECONDS * 50)):
        at = tick / 50
        positions = np.array([at * 0.1, *Q[1:], 0.04, 0.04])
        kind = "sensor_msgs/msg/JointState"
        told.append((at + late, "/joint_states", kind, types[kind](header(at), names, positions, empty, empty)))
        if tick % 5 == 0:
            for camera in contract.cameras.values():
                pixels = np.full((96, 96, 3), tick, np.uint8)
                data = np.frombuffer(cv2.imencode(".png", pixels)[1].tobytes(), np.uint8)
                kind = "sensor_msgs/msg/CompressedImage"
                told.append((at + late, camera.topic, kind, types[kind](header(at), "png", data)))
    return told


def write(path, contract, form):
    store = get_typestore(Stores.ROS1_NOETIC if form == "ros 1" else Stores.ROS2_HUMBLE)
    told = messages(contract, store, ros=1 if form == "ros 1" else 2)
    if form == "ros 1":
        writer, serialize = Ros1Writer(path), store.serialize_ros1
    else:
        plugin = StoragePlugin.SQLITE3 if form.startswith("sqlite") else StoragePlugin.MCAP
        writer, serialize = Ros2Writer(path, version=8, storage_plugin=plugin), store.serialize_cdr
        if form == "sqlite zstd":
            writer.set_compression(CompressionMode.FILE, CompressionFormat.ZSTD)
    with writer:
        kinds = {topic: kind for _, topic, kind, _ in told}
        channels = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in kinds.items()}
        for at, topic, kind, message in told:
            writer.write(channels[topic], round((BEGIN + at) * 1e9), serialize(message, kind))
    return path


class Prompt:
    """A policy in this process that answers at once."""

    failure, ready = None, True

    def __init__(self):
        self.act, self.chunk = policies.pointing(), None

    def ask(self, observation, observed):
        self.chunk = Chunk(self.act(observation), observed)
        return True

    def answer(self):
        chunk, self.chunk = self.chunk, None
        return chunk
