"""A simulated world as the robot of a contract: its state as ROS messages, and ROS messages as its commands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import cv2
import numpy as np

from moe_robot.deploy import command_messages
from moe_robot.deploy.contract import Contract
from moe_robot.types import RobotWorld, UserError

Pictures = Literal["png", "jpeg"]
JPEG_QUALITY = 90


def world_options(contract: Contract) -> dict[str, Any]:
    """Options of the environment that give the pictures and the rate of the contract.

    Raises:
        UserError: the contract is of a robot that is not simulated here.
    """
    sizes = {camera.published_size or camera.size for camera in contract.cameras.values()}
    if len(sizes) > 1:
        raise UserError(f"cameras of {len(sizes)} sizes: the simulated ones all have one; correct published_size")
    for name, camera in contract.cameras.items():
        if not camera.type.endswith("CompressedImage"):
            raise UserError(f"camera {name!r} sends {camera.type}: the simulated ones send CompressedImage; correct it")
    if contract.command.sink != "positions":
        raise UserError(
            f"{contract.command.type} is no command that the simulated robot takes: expected "
            "std_msgs/msg/Float64MultiArray; correct command.type"
        )
    size = {"image_size": next(iter(sizes))} if sizes else {}
    return {"cameras": tuple(contract.cameras), "control_hz": contract.control_hz} | size


class SimulatedRobot:
    """Speaks for a world as the contract says. For one thread. N arm joints in the contract's order, F fingers."""

    def __init__(self, world: RobotWorld, contract: Contract, pictures: Pictures = "png") -> None:
        """Nothing moves yet.

        Raises:
            UserError: the contract's joints are not those of the world.
        """
        self._world, self._contract, self._pictures = world, contract, pictures
        arm, fingers = [joint.name for joint in contract.joints], contract.gripper.joints if contract.gripper else ()
        if tuple(arm) != world.joint_names[: len(arm)] or len(arm) + len(fingers) != len(world.joint_names):
            raise UserError(
                f"the contract of {contract.robot} has the joints {', '.join([*arm, *fingers])}, and the world "
                f"{', '.join(world.joint_names)}: correct the contract"
            )
        self._names = [*contract.topic_names, *fingers]
        self._ticks = 0
        self.sources = {camera.topic: _spelled(camera.type, contract) for camera in contract.cameras.values()}
        self.sources[contract.joint_states.topic] = _spelled("sensor_msgs/msg/JointState", contract)
        """Topic -> message type of what it tells."""
        self.sinks = {topic: _spelled(kind, contract) for topic, kind in command_messages.topics(contract).items()}
        """Topic -> message type of what it obeys."""

    def obey(self, topic: str, message: Mapping[str, Any]) -> str | None:
        """Do what a Float64MultiArray says; why not, or None. It then holds what it was told before."""
        expected = len(self._contract.joints) if topic == self._contract.command.topic else 1
        try:
            values = np.array(message.get("data"), dtype=float)
        except (TypeError, ValueError):
            values = np.full(0, np.nan)
        if values.shape != (expected,) or not np.isfinite(values).all():
            return f"a command on {topic} was left out: expected {expected} finite numbers in data"
        gripper = self._contract.gripper
        if topic == self._contract.command.topic:
            self._world.move_joints(values)
        elif gripper is not None:
            (closed, opened), (low, high) = gripper.opening, gripper.command
            self._world.move_fingers(closed + (float(values[0]) - low) / (high - low) * (opened - closed))
        return None

    def advance(self) -> None:
        """Let ``update_s`` seconds pass."""
        self._world.advance()
        self._ticks += 1

    def messages(self, stamp: float, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
        """Topic -> message of all that is due now by the contract's rates and wanted by somebody.

        Args:
            stamp: of this moment, on the wall clock, seconds.
            wanted: whether anybody listens to a topic.
        """
        rates = {camera.topic: camera.rate_hz for camera in self._contract.cameras.values()}
        rates[self._contract.joint_states.topic] = self._contract.joint_states.rate_hz
        due = [topic for topic, rate_hz in rates.items() if self._is_due(rate_hz) and wanted(topic)]
        return self.stamped(self.contents(due), stamp)

    def contents(self, topics: Collection[str]) -> dict[str, dict[str, Any]]:
        """Topic -> message without a header of what the robot could tell now, of those ``topics``."""
        told: dict[str, dict[str, Any]] = {}
        states = self._contract.joint_states.topic
        if states in topics:
            positions, velocities = self._world.joints()
            told[states] = {"name": self._names, "position": positions, "velocity": velocities, "effort": []}
        cameras = {name: camera.topic for name, camera in self._contract.cameras.items() if camera.topic in topics}
        if cameras:
            drawn = self._world.pictures()
            for name, topic in cameras.items():
                told[topic] = {"format": self._pictures, "data": self._encoded(drawn[name])}
        return told

    def stamped(self, contents: Mapping[str, Mapping[str, Any]], stamp: float, mark: str = "") -> dict[str, Any]:
        """The messages with a header: ``stamp`` on the wall clock, seconds; ``mark`` in its ``frame_id``."""
        second, nanosecond = divmod(round(stamp * 1e9), 10**9)
        names = ("sec", "nanosec") if self._contract.ros == 2 else ("secs", "nsecs")
        header = {"stamp": dict(zip(names, (second, nanosecond), strict=True)), "frame_id": mark}
        return {topic: {"header": header, **content} for topic, content in contents.items()}

    def _is_due(self, rate_hz: float) -> bool:
        """Whether a source of this rate tells something in this tick; at most once per tick."""
        per_tick = rate_hz * self._world.update_s
        return int(self._ticks * per_tick + 1e-6) != int((self._ticks - 1) * per_tick + 1e-6)

    def _encoded(self, picture: np.ndarray) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if self._pictures == "jpeg" else []
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        return cv2.imencode(f".{self._pictures}", bgr, options)[1].tobytes()


def _spelled(kind: str, contract: Contract) -> str:
    return kind if contract.ros == 2 else kind.replace("/msg/", "/")
