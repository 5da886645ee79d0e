"""The robot of ``moe-robot bench deploy``: 640x480 JPEG at 30 Hz over our bridge or ROS 2, and when each answer came.

Picture, joint state and command carry the same number, so that whoever answers is timed by this process's clock alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np

from moe_robot.deploy.backends import rosbridge_wire as wire
from moe_robot.deploy.contract import Contract, load_contract
from moe_robot.deploy.simulation.bridge import BridgeServer
from moe_robot.deploy.simulation.ros2_server import Ros2Server

RATE_HZ, SIZE = 30, (480, 640)
NATIVE = "ROS 2"
"""In place of an address: no bridge."""
STEP, NUMBERS = 1e-3, 500
"""The first joint's position says which of so many frames it is."""
POSTURE = (0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785)
LOOK_S = 0.001
OUTAGE_S, RECONNECT_S = 2.5, 12.0


def bench_contract() -> Contract:
    """PitStop's arm with one camera of 640x480 and 30 control steps per second, patient with a busy machine."""
    pitstop = load_contract("pitstop")
    camera = replace(pitstop.cameras["front"], size=SIZE, rate_hz=RATE_HZ, max_age_s=2.0)
    return replace(
        pitstop, control_hz=RATE_HZ, cameras={"front": camera}, heartbeat_s=3600.0, max_command_age_s=2.0,
        max_skew_s=2.0, joint_states=replace(pitstop.joint_states, rate_hz=RATE_HZ, max_age_s=2.0),
    )  # fmt: skip


def position_of(number: int) -> np.ndarray:
    """(7,) where the arm is in frame ``number``, and what answers it."""
    return np.array([number % NUMBERS * STEP, *POSTURE[1:]])


def serve(pipe: Connection, native: bool = False) -> None:
    """Say the port, 0 for ROS 2 itself; do what is asked: ``("window", seconds)``, ``("outage",)``, ``("end",)``."""
    robot = _Robot(native)
    try:
        pipe.send(robot.port)
        while (wish := pipe.recv())[0] != "end":
            pipe.send(robot.window(wish[1]) if wish[0] == "window" else robot.outage(pipe))
    finally:
        robot.server.stop()


class _Bridge(BridgeServer):
    """Remembers when each message came: of several that come at once, :meth:`take` would give only the newest."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.came: list[tuple[float, str, Any]] = []

    def _hear(self, client: Any, frame: str | bytes) -> str | None:
        now = time.monotonic()
        message = wire.parse(frame)
        if message["op"] == "publish":
            self.came.append((now, str(message["topic"]), message["msg"]))
        return super()._hear(client, frame)


class _Native(Ros2Server):
    """The same on ROS 2 itself."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.came: list[tuple[float, str, Any]] = []

    def _hear(self, topic: str, told: Any) -> None:
        self.came.append((time.monotonic(), topic, {"data": told.data}))


class _Robot:
    def __init__(self, native: bool) -> None:
        self.contract, self._native = bench_contract(), native
        self.camera, self.states = self.contract.cameras["front"].topic, self.contract.joint_states.topic
        self.commands = self.contract.command.topic
        self.server, self.port = self._listen(0)
        noise = np.random.default_rng(0).normal(0, 8, (*SIZE, 3))
        ramp = np.linspace(40, 200, SIZE[1])[None, :, None] + np.linspace(0, 40, SIZE[0])[:, None, None]
        pixels = np.clip(cv2.GaussianBlur(ramp + noise, (5, 5), 0), 0, 255).astype(np.uint8)
        self.jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        self.names = [*self.contract.topic_names, "panda_finger_joint1", "panda_finger_joint2"]
        self.number = 0

    def _listen(self, port: int) -> tuple[_Bridge | _Native, int]:
        tells = {self.camera: "sensor_msgs/msg/CompressedImage", self.states: "sensor_msgs/msg/JointState"}
        gripper = self.contract.gripper
        hears = dict.fromkeys([self.commands, *([gripper.topic] if gripper else [])], self.contract.command.type)
        if self._native:
            server = _Native(tells, hears)
            server.start()
            return server, 0
        server = _Bridge("127.0.0.1", port, tells, hears)
        return server, server.start()

    def window(self, seconds: float) -> dict[str, Any]:
        """Frames for so long; how many, how many were answered, and after how many seconds each."""
        told, late = {}, {}
        self.server.came.clear()
        due = time.monotonic()
        end = due + seconds
        while (now := time.monotonic()) < end + 0.5:  # half a second for the last answers
            if due <= now < end:
                self.number += 1
                told[self.number % NUMBERS] = time.monotonic()
                self._tell()
                due = max(due + 1 / RATE_HZ, now)
            time.sleep(LOOK_S)
        for at, topic, answer in self.server.came:
            number = round(answer["data"][0] / STEP)
            if topic == self.commands and number in told and number not in late:
                late[number] = at - told[number]
        return {"frames": len(told), "answered": len(late), "seconds": list(late.values())}

    def outage(self, pipe: Connection) -> int:
        """Be gone for a while and come back on the same port; how many commands come then."""
        self.server.stop()
        pipe.send("gone")
        time.sleep(OUTAGE_S)
        self.server, _ = self._listen(self.port)
        time.sleep(RECONNECT_S)
        return len(self.server.came)

    def _tell(self) -> None:
        rest, whole = math.modf(time.time())
        header = {"stamp": {"sec": int(whole), "nanosec": int(rest * 1e9)}, "frame_id": str(self.number)}
        positions = np.append(position_of(self.number), [0.04, 0.04])
        state = {"name": self.names, "position": positions, "velocity": np.zeros(9), "effort": []}
        self.server.tell(self.states, {"header": header} | state)
        self.server.tell(self.camera, {"header": header, "format": "jpeg", "data": self.jpeg})
