"""What a recording holds of a deployment: topics, and the ROS messages of each control step and decision, as dicts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_robot.deploy import command_messages
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import Decision, State
from moe_robot.deploy.loop import Step
from moe_robot.deploy.robot_io import Image, JointState

ACTION, INSTRUCTION, DIAGNOSTICS = "/moe_robot/action", "/moe_robot/instruction", "/diagnostics"
SENT, DRY_RUN = "/moe_robot/sent", "/moe_robot/dry_run"
"""Before the topic of a command. Under its own name, playing a recording back would move the robot, without a gate."""
JOINT_STATE, RAW, COMPRESSED = "sensor_msgs/msg/JointState", "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
IMAGE_FIELDS = {
    COMPRESSED: ("header", "format", "data"),
    RAW: ("header", "height", "width", "encoding", "is_bigendian", "step", "data"),
}
STATE_FIELDS = ("header", "name", "position", "velocity", "effort")
LEVELS = {State.ENABLED: 0, State.DISABLED: 1, State.HELD: 2}
"""Of DiagnosticStatus: OK, WARN, ERROR."""


@dataclass(frozen=True)
class Entry:
    """One message.

    Attributes:
        topic: where it is recorded.
        kind: its type, as ROS 2 spells it.
        message: plain data that can go to another process.
        at: when it came or was sent, seconds on the robot's clock that never jumps.
    """

    topic: str
    kind: str
    message: Mapping[str, Any]
    at: float


def instruction(text: str, at: float) -> Entry:
    """What the robot was to do."""
    return Entry(INSTRUCTION, "std_msgs/msg/String", {"data": text}, at)


def compressed_topic(topic: str) -> str:
    """Where the pictures of a camera are recorded that sends them raw: the name that image_transport gives."""
    return f"{topic}/compressed"


class Tap:
    """Makes entries of control steps and decisions; each picture and joint state once."""

    def __init__(self, contract: Contract, offset: float) -> None:
        """``offset`` is the wall clock minus the robot's clock, seconds."""
        self._contract, self._offset = contract, offset
        self._newest: dict[str, tuple[int, float]] = {}
        self._stamps: deque[tuple[float, Mapping[str, Any]]] = deque(maxlen=1024)

    def step(self, step: Step) -> list[Entry]:
        """What was sensed that was not before, and the policy's action with the stamp of what it answers."""
        entries = []
        for state in step.sensed.recent:
            if self._is_new("", step.sensed.epoch, state):
                entries.append(
                    Entry(self._contract.joint_states.topic, JOINT_STATE, self._state(state), state.received)
                )
        for name, image in step.sensed.images.items():
            if self._is_new(name, step.sensed.epoch, image):
                entries.append(self._picture(name, image))
        if step.action is not None and step.observed is not None:
            values = {"name": list(self._contract.action.names), "position": step.action.tolist()}
            stamped = {"header": self._answered(step.observed)} | values
            entries.append(Entry(ACTION, JOINT_STATE, stamped, step.at))
        return entries

    def decision(self, decision: Decision, now: float) -> list[Entry]:
        """What the gate let through, and what it says."""
        gated, prefix = (decision.send, SENT) if decision.send else (decision.passed, DRY_RUN)
        entries = []
        if gated is not None:
            kinds = command_messages.topics(self._contract)
            told = command_messages.messages(gated.command, self._contract, now + self._offset)
            entries = [Entry(prefix + topic, kinds[topic], message, now) for topic, message in told.items()]
        failure = decision.failure
        values = {"state": decision.state.value, "rule": failure.rule if failure else ""}
        values["command"] = "none" if gated is None else "hold" if gated.hold else "passed"
        values["sent"] = "yes" if decision.send else "no"
        status = {
            "level": LEVELS[decision.state],
            "name": "moe_robot: safety gate",
            "message": failure.message if failure else decision.state.value,
            "hardware_id": self._contract.robot,
            "values": [{"key": key, "value": value} for key, value in values.items()],
        }
        report = {"header": self._header(now, ""), "status": [status]}
        return [*entries, Entry(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", report, now)]

    def _is_new(self, what: str, epoch: int, part: Image | JointState) -> bool:
        new = (epoch, part.sensed) > self._newest.get(what, (-1, 0.0))
        if new:
            self._newest[what] = epoch, part.sensed
            if part.message is not None:
                self._stamps.append((part.sensed, part.message["header"]))
        return new

    def _answered(self, observed: float) -> dict[str, Any]:
        """The header of what was observed then, so that it can be found again whatever the clocks did since."""
        found = next((header for sensed, header in reversed(self._stamps) if sensed == observed), None)
        if found is None:
            return self._header(observed, "")
        return {"stamp": found["stamp"], "frame_id": ""}

    def _state(self, state: JointState) -> dict[str, Any]:
        if state.message is not None:
            return {key: state.message.get(key) for key in STATE_FIELDS}
        gripper = self._contract.gripper
        fingers = gripper.joints if gripper and state.opening is not None else ()
        names, shares = [*self._contract.topic_names, *fingers], [(state.opening or 0.0) / max(len(fingers), 1)]
        return {
            "header": self._header(state.sensed, ""),
            "name": names,
            "position": [*state.positions.tolist(), *shares * len(fingers)],
        }

    def _picture(self, name: str, image: Image) -> Entry:
        camera = self._contract.cameras[name]
        kind = RAW if image.message is None else camera.type
        if image.message is not None:
            message = {key: image.message.get(key) for key in IMAGE_FIELDS[camera.type]}
        else:
            height, width, _ = image.pixels.shape
            message = {"header": self._header(image.sensed, name), "height": height, "width": width, "step": 3 * width}
            message |= {"encoding": "rgb8", "data": np.ascontiguousarray(image.pixels).tobytes()}
        topic = camera.topic if camera.type == COMPRESSED else compressed_topic(camera.topic)
        return Entry(topic, kind, message, image.received)

    def _header(self, at: float, frame: str) -> dict[str, Any]:
        seconds, nanoseconds = divmod(round((at + self._offset) * 1e9), 10**9)
        return {"stamp": {"sec": seconds, "nanosec": nanoseconds}, "frame_id": frame}
