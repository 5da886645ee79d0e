"""A robot that exists only in memory, on a clock of its own, with faults at set times: to test what must not go wrong.

It publishes ROS messages as plain dicts, through the same inbox as the real backends, and moves where it is told.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.inbox import Inbox
from moe_robot.deploy.robot_io import GatedCommand, JointCommand, Snapshot, Status

TICK_S = 0.005
WALL_OFFSET = 1.7e9
"""Of the robot's stamps, which are wall time, to the fake's clock, which begins at 0."""
LATE_S = 0.4

FaultKind = Literal[
    "dropped", "late", "duplicated", "reordered", "future", "nan", "infinite", "wrong size", "wrong encoding",
    "garbage", "bomb", "permuted", "nameless", "clock forward", "clock back", "frozen", "disconnected",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong from ``begin`` until ``end``, seconds on the fake's clock.

    Attributes:
        kind: messages are ``dropped``, ``late`` by 0.4 s, ``duplicated``, ``reordered`` in pairs, stamped 10 s in the
            ``future``; joint states are ``nan`` or ``infinite``, name their joints in another order (``permuted``) or
            one too few (``nameless``); pictures are of the ``wrong size`` or ``wrong encoding``, no pictures
            (``garbage``) or claim gigapixels (``bomb``); the robot's clock jumps an hour ``clock forward`` or
            ``clock back``; the connection is ``frozen`` (nothing comes, sending seems to work) or ``disconnected``.
        topic: of the messages that suffer; None for all.
    """

    kind: FaultKind
    begin: float
    end: float
    topic: str | None = None


class FakeRobot:
    """``RobotIO`` without a robot. Time passes only in :meth:`advance`."""

    def __init__(self, contract: Contract, positions: np.ndarray, faults: tuple[Fault, ...] = ()) -> None:
        """Begin with the joints at ``positions`` (N,) rad, and the gripper open."""
        self._contract, self._faults, self._inbox = contract, faults, Inbox(contract)
        self.positions = np.array(positions, dtype=float)
        self.opening = contract.gripper.opening[1] if contract.gripper else None
        self.sent: list[GatedCommand] = []
        """All commands that reached the robot, in order."""
        self._ticks = 0
        self._on_the_way: list[tuple[float, str, dict[str, Any]]] = []
        self._published: dict[str, int] = {}
        self._connected = True

    def start(self) -> None:
        """Nothing to do: it is there."""

    def stop(self) -> None:
        """Nothing to do."""

    def latest(self) -> Snapshot:
        """What has arrived by now."""
        return self._inbox.snapshot()

    def send(self, command: GatedCommand) -> bool:
        """Move there at once, unless disconnected; a frozen connection takes it and delivers nothing."""
        if not self._connected or command.epoch != self._inbox.epoch:
            self._inbox.count("commands dropped")
            return False
        if not self._suffers("frozen"):
            self.sent.append(command)
            if isinstance(command.command, JointCommand):
                self.positions = command.command.positions[-1].copy()
        return True

    def now(self) -> float:
        """Seconds since the beginning."""
        return self._ticks * TICK_S

    def status(self) -> Status:
        """As for every robot."""
        return self._inbox.status(self._connected)

    def receive(self, topic: str, message: Mapping[str, Any]) -> None:
        """Have a message arrive now, whatever it is."""
        self._inbox.take(topic, message, self.now(), self.now() + WALL_OFFSET)

    def advance(self, seconds: float) -> None:
        """Let time pass, in whole ticks: publish what falls due, and deliver what is on its way."""
        for _ in range(math.ceil(seconds / TICK_S - 1e-6)):
            self._ticks += 1
            self._connect(not self._suffers("disconnected"))
            joints = self._contract.joint_states
            self._publish(joints.topic, joints.rate_hz, self._joint_state)
            for camera in self._contract.cameras.values():
                self._publish(camera.topic, camera.rate_hz, self._picture)
            self._deliver()

    def _connect(self, connected: bool) -> None:
        if connected and not self._connected:
            self._inbox.begin_epoch()
        if not connected:
            self._on_the_way.clear()
        self._connected = connected

    def _publish(self, topic: str, rate_hz: float, make: Any) -> None:
        due = int(self.now() * rate_hz + 1e-6)
        if due == self._published.get(topic, 0):
            return
        self._published[topic] = due
        if not self._connected or self._suffers("dropped", topic) or self._suffers("frozen", topic):
            return
        clock = 3600.0 * (self._suffers("clock forward") - self._suffers("clock back"))
        stamp = self.now() + WALL_OFFSET + clock + 10.0 * self._suffers("future", topic)
        message = make(topic) | {"header": {"stamp": {"sec": int(stamp), "nanosec": int(stamp % 1 * 1e9)}}}
        late = LATE_S * self._suffers("late", topic)
        if self._suffers("reordered", topic) and due % 2:
            late += 1.5 / rate_hz  # the next one overtakes it
        for _ in range(1 + self._suffers("duplicated", topic)):
            self._on_the_way.append((self.now() + late, topic, copy.copy(message)))

    def _deliver(self) -> None:
        now = self.now()
        for _, topic, message in [letter for letter in self._on_the_way if letter[0] <= now]:
            self.receive(topic, message)
        self._on_the_way = [letter for letter in self._on_the_way if letter[0] > now]

    def _joint_state(self, topic: str) -> dict[str, Any]:
        gripper = self._contract.gripper
        names = [*self._contract.topic_names, *(gripper.joints if gripper else ())]
        fingers = [self.opening / len(gripper.joints)] * len(gripper.joints) if gripper and self.opening else []
        positions = [*self.positions.tolist(), *fingers]
        if self._suffers("nan", topic):
            positions[0] = float("nan")
        if self._suffers("infinite", topic):
            positions[-1] = float("inf")
        if self._suffers("permuted", topic):
            names, positions = names[::-1], positions[::-1]
        if self._suffers("nameless", topic):
            names, positions = names[1:], positions[1:]
        return {"name": names, "position": positions, "velocity": [], "effort": []}

    def _picture(self, topic: str) -> dict[str, Any]:
        camera = next(camera for camera in self._contract.cameras.values() if camera.topic == topic)
        height, width = camera.published_size or camera.size
        if self._suffers("wrong size", topic):
            height += 8
        form = ".bmp" if self._suffers("wrong encoding", topic) else ".png"
        data = cv2.imencode(form, np.full((height, width, 3), self._ticks % 256, np.uint8))[1].tobytes()
        if self._suffers("garbage", topic):
            data = b"\xff\xd8\xff" + bytes(range(256))
        if self._suffers("bomb", topic):
            data = data[:16] + (60000).to_bytes(4, "big") * 2 + data[24:]
        return {"format": "png", "data": data}

    def _suffers(self, kind: FaultKind, topic: str | None = None) -> bool:
        now = self.now()
        return any(
            fault.kind == kind and fault.begin <= now < fault.end and (topic is None or fault.topic in (None, topic))
            for fault in self._faults
        )
