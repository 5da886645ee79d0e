"""What the robots on ROS 2, behind a bridge and in this process have in common: an inbox, and who is there."""

from __future__ import annotations

import time

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.inbox import Inbox
from moe_robot.deploy.robot_io import GatedCommand, Snapshot, Status


class Listener:
    """The part of ``RobotIO`` that does not depend on how messages travel, and whether the robot is simulated."""

    def __init__(self, contract: Contract) -> None:
        """Nothing is connected yet."""
        self._contract, self._inbox = contract, Inbox(contract)
        self._connected = False
        self._simulated: bool | None = None

    def latest(self) -> Snapshot:
        """The newest of everything in this epoch."""
        return self._inbox.snapshot()

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

    def _is_for(self, command: GatedCommand) -> bool:
        """Whether a command was judged for the robot that is there; one that was not is counted as dropped."""
        if self._connected and command.epoch == self._inbox.epoch:
            return True
        self._inbox.count("commands dropped")
        return False
