"""The robot's topics in its contract: what comes in, what actions mean, where commands go; each checked alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_robot.deploy.typed_yaml import Inconsistent

MAX_PIXELS = 4096
"""On a side of a picture."""
JOINT_SPEED_WORDS = re.compile("velocity|effort|torque", re.IGNORECASE)


@dataclass(frozen=True)
class Camera:
    """Where one camera's pictures come from.

    Attributes:
        size: (height, width) as the policy sees it, pixels.
        rate_hz: pictures per second.
        max_age_s: a picture older than this stops the robot.
        published_size: (height, width) as the robot sends it, when that differs; pictures are then resized.
        reliability: that native ROS 2 asks for. ``best_effort`` hears every publisher; ``reliable`` only reliable ones,
            and loses no parts of large raw pictures.
    """

    topic: str
    type: Literal["sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"]
    size: tuple[int, int]
    rate_hz: float
    max_age_s: float
    published_size: tuple[int, int] | None = None
    reliability: Literal["best_effort", "reliable"] = "best_effort"

    def __post_init__(self) -> None:
        check_topic(self.topic)
        check_freshness(self.rate_hz, self.max_age_s)
        for key, size in (("size", self.size), ("published_size", self.published_size or self.size)):
            if not all(1 <= side <= MAX_PIXELS for side in size):
                raise Inconsistent(key, f"{list(size)} is not offered: expected 1 to {MAX_PIXELS} pixels on each side")


@dataclass(frozen=True)
class JointStates:
    """Where ``sensor_msgs/msg/JointState`` messages come from; ``max_age_s`` as for cameras."""

    topic: str
    rate_hz: float
    max_age_s: float

    def __post_init__(self) -> None:
        check_topic(self.topic)
        check_freshness(self.rate_hz, self.max_age_s)


@dataclass(frozen=True)
class Action:
    """What the policy's numbers mean.

    Attributes:
        meaning: ``joint_position`` (where each joint should be), ``joint_delta`` or ``cartesian_delta`` (where joints
            or tool should go, from where they are measured to be; the waypoint may lie beyond one control step).
        names: one per number; with a gripper the last is its.
        units: rad or m that an action of 1 means, one per number except the gripper's.
        clip: the lowest and the highest number that means anything, as where the policy was trained; None for all.
    """

    meaning: Literal["joint_position", "joint_delta", "cartesian_delta"]
    names: tuple[str, ...]
    units: tuple[float, ...]
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if again := first_repeated(self.names):
            raise Inconsistent("names", f"{again!r} stands twice: every number needs its own name")
        if 0.0 in self.units:
            raise Inconsistent("units", "0 would make an action mean nothing: give rad or m per 1")
        if self.clip and not self.clip[0] < self.clip[1]:
            raise Inconsistent("clip", f"{self.clip[0]:g} is not below {self.clip[1]:g}")


@dataclass(frozen=True)
class CommandSink:
    """Where commands go.

    Attributes:
        type: ``Float64MultiArray`` for a forward position controller, ``JointTrajectory`` for whole chunks,
            ``TwistStamped`` for MoveIt Servo.
        robot_timeout_s: the robot stops by itself this long after the last command. A twist must have one: without it
            a lost connection leaves the arm moving.
        frame: that twists are given in; the base frame of the chain.
    """

    topic: str
    type: Literal[
        "std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory", "geometry_msgs/msg/TwistStamped"
    ]
    robot_timeout_s: float | None = None
    frame: str | None = None

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if self.robot_timeout_s is not None and not self.robot_timeout_s > 0:
            raise Inconsistent("robot_timeout_s", f"{self.robot_timeout_s:g} is not above 0")
        if self.sink != "twist" and (word := JOINT_SPEED_WORDS.search(self.topic)):
            raise Inconsistent(
                "topic",
                f"{self.topic!r} sounds like a {word.group().lower()} controller, and what is sent are positions: "
                "name a position controller",
            )
        if self.sink == "twist" and self.robot_timeout_s is None:
            raise Inconsistent(
                "type", "a velocity goes on when commands cease: state the robot's own stop in robot_timeout_s"
            )
        if self.sink == "twist" and self.frame is None:
            raise Inconsistent("type", "a TwistStamped needs the name of the frame it is given in: add frame")

    @property
    def sink(self) -> Literal["positions", "trajectory", "twist"]:
        """What kind of command the topic takes, by its message type."""
        if self.type == "geometry_msgs/msg/TwistStamped":
            return "twist"
        return "trajectory" if self.type == "trajectory_msgs/msg/JointTrajectory" else "positions"


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that stood before, or None."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def check_topic(topic: str) -> None:
    """Refuse what ROS would not take as an absolute topic name."""
    if not re.fullmatch(r"(/[A-Za-z][A-Za-z0-9_]*)+", topic):
        raise Inconsistent("topic", f"{topic!r} is no topic: expected a name like /front/image_raw, beginning with /")


def check_freshness(rate_hz: float, max_age_s: float) -> None:
    """Refuse an age limit that even a faultless source would break between two of its messages."""
    if not rate_hz > 0:
        raise Inconsistent("rate_hz", f"{rate_hz:g} is not above 0")
    if max_age_s < 1 / rate_hz:
        raise Inconsistent(
            "max_age_s", f"{max_age_s:g} s is shorter than the {1 / rate_hz:g} s between two messages: raise it"
        )
