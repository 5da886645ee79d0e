"""What a robot is to the control loop: the protocol ``RobotIO`` and the records that pass through it (numpy only).

N joints in the contract's order. All times are seconds on the clock of ``RobotIO.now``, which never jumps; a backend
translates the robot's stamps to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Image:
    """One picture of one camera.

    Attributes:
        pixels: uint8 (H, W, 3), RGB, in the size that the contract gives the policy.
        sensed: when it was taken.
        received: when it arrived here.
        message: the ROS message that it was decoded from, for recordings; None when there was none.
    """

    pixels: np.ndarray
    sensed: float
    received: float
    message: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class JointState:
    """Where the robot is measured to be.

    Attributes:
        positions: (N,) rad.
        velocities: (N,) rad/s, or None from a robot that does not tell them.
        opening: of the gripper, in the contract's units; None for a robot without one.
        sensed: when it was measured.
        received: when it arrived here.
        message: as in :class:`Image`.
    """

    positions: np.ndarray
    velocities: np.ndarray | None
    opening: float | None
    sensed: float
    received: float
    message: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Snapshot:
    """The newest that a robot has told.

    Attributes:
        images: camera -> its newest picture; a camera that has sent none is left out.
        joints: recent joint states, oldest first, in the order they were sensed.
        epoch: a number that changes whenever what came before no longer counts (a new connection, a reset clock).
    """

    images: Mapping[str, Image] = field(default_factory=dict)
    joints: tuple[JointState, ...] = ()
    epoch: int = 0


@dataclass(frozen=True)
class JointCommand:
    """Where the joints should be.

    Attributes:
        positions: (K, N) rad: where to be one, two, ... K control steps from now. Only a trajectory sink takes K > 1.
        opening: of the gripper, in the contract's units; None leaves it as it is.
        observed: when what the policy answered with this was sensed.
        mark: which moment it answers, for a simulated robot that waits for it; else empty.
    """

    positions: np.ndarray
    opening: float | None
    observed: float
    mark: str = ""


@dataclass(frozen=True)
class TwistCommand:
    """How fast the tool should move.

    Attributes:
        twist: (6,) three linear (m/s) and three angular (rad/s) velocities in the base frame.
        opening: as in :class:`JointCommand`.
        observed: as in :class:`JointCommand`.
    """

    twist: np.ndarray
    opening: float | None
    observed: float


Command = JointCommand | TwistCommand


@dataclass(frozen=True)
class GatedCommand:
    """A command that the safety gate let through. Only :mod:`moe_robot.deploy.safety` makes these (a test holds that).

    Attributes:
        command: what to do; its arrays are copies that nobody can write to.
        at: when it was let through.
        epoch: of the snapshot it was judged by; a robot in another epoch drops it.
        hold: whether it stops the robot, rather than coming from the policy.
    """

    command: Command
    at: float
    epoch: int
    hold: bool = False


@dataclass(frozen=True)
class Status:
    """How a robot's connection is doing, for people and diagnostics.

    Attributes:
        connected: whether messages can flow now.
        epoch: as in :class:`Snapshot`.
        counts: what happened -> how often, for example ``"commands dropped"``.
        trouble: the latest thing that went wrong, one line; None when nothing has.
    """

    connected: bool
    epoch: int
    counts: Mapping[str, int]
    trouble: str | None


class RobotIO(Protocol):
    """A robot, real, simulated or recorded. Any thread may call these; only ``start`` and ``stop`` ever wait."""

    def start(self) -> None:
        """Begin to connect and to listen."""
        ...

    def stop(self) -> None:
        """Send nothing more, let go of threads and sockets. Safe to call again."""
        ...

    def latest(self) -> Snapshot:
        """The newest of everything; the same again while nothing new has come."""
        ...

    def send(self, command: GatedCommand) -> bool:
        """Send a command now or drop it: nothing is kept to be sent later. False when dropped; never raises."""
        ...

    def now(self) -> float:
        """Seconds on a clock that never jumps."""
        ...

    def status(self) -> Status:
        """How the connection is doing."""
        ...
