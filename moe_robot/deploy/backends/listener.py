"""What the robots on ROS 2 and behind a bridge have in common: an inbox, a connection, and what is told of both."""

from __future__ import annotations

import time

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.inbox import Inbox
from moe_robot.deploy.robot_io import Status


class Listener:
    """The part of ``RobotIO`` that does not depend on how messages travel, and whether the robot is simulated."""

    def __init__(self, contract: Contract) -> None:
        """Nothing is connected yet."""
        self._contract, self._inbox = contract, Inbox(contract)
        self._connected = False
        self._simulated: bool | None = None

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def status(self) -> Status:
        """How the connection is doing."""
        return self._inbox.status(self._connected)

    @property
    def simulated(self) -> bool | None:
        """Whether all that answers is ``moe-robot sim-node``, which can hurt nobody; None while that is not known."""
        return self._simulated

    @property
    def epoch(self) -> int:
        """Number of the connection, or of the generation of the robot's publishers."""
        return self._inbox.epoch
