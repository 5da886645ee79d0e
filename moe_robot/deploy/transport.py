"""The way to a robot: native ROS 2 where this Python has rclpy, else a rosbridge server; or a world in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from moe_robot.deploy.address import is_loopback
from moe_robot.deploy.backends.ros2_messages import available
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.operator import Simulation
from moe_robot.deploy.robot_io import RobotIO
from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.deploy.simulation.node import Outcome

Transport = Literal["auto", "rclpy", "rosbridge"]


class Robot(RobotIO, Simulation, Protocol):
    """A robot that also says whether it is simulated."""


def chosen(transport: Transport, address: str | None, ros: int = 2) -> Literal["rclpy", "rosbridge"]:
    """What ``auto`` is here: rosbridge for an address or ROS 1, else rclpy where it is installed.

    Raises:
        UserError: rclpy with an address.
    """
    if transport == "rclpy" and address is not None:
        raise UserError(f"{address} is a rosbridge server's: leave --address out, or choose --transport rosbridge")
    if transport != "auto":
        return transport
    return "rclpy" if address is None and ros == 2 and available() else "rosbridge"


def stay_on_this_machine() -> None:
    """Have ROS 2 nodes that are started from now on see and be seen by no other machine."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.pop("ROS_STATIC_PEERS", None)


def whereabouts() -> str:
    """Where ROS 2 nodes that are started now look for others: ``ROS 2, domain 0 (LOCALHOST)``."""
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    return f"ROS 2, domain {os.environ.get('ROS_DOMAIN_ID') or 0} ({reach})"


def simulated_here(contract: Contract, task: str, seed: int, say: Callable[[str], None]) -> tuple[Robot, str]:
    """A world in this process as the robot of a contract, not begun yet, and what it is; see :class:`SimRobot`.

    Args:
        contract: of the robot.
        task: what is judged.
        seed: of the first episode.
        say: told how each episode ended, in one line.

    Raises:
        UserError: the contract is of a robot that is not simulated here.
    """
    from moe_robot.deploy.backends.sim import SimRobot

    def judged(outcome: Outcome) -> None:
        say(f"episode: {outcome.task}, seed {outcome.seed}: {outcome}")

    return SimRobot(contract, task, seed, judged=judged), "a simulated world in this process"


def robot(
    contract: Contract, transport: Transport, address: str | None, ca_file: Path | None, simulated: bool
) -> tuple[Robot, str]:
    """The robot of a contract, not connected yet, and where it is looked for.

    Args:
        contract: of the robot.
        transport: as in the options of ``moe-robot deploy``.
        address: of a rosbridge server, in place of the contract's.
        ca_file: certificates to trust for it.
        simulated: look on this machine only.

    Raises:
        UserError: what was asked for cannot be, or is elsewhere and must not.
    """
    if chosen(transport, address, contract.ros) == "rclpy":
        from moe_robot.deploy.backends.ros2 import Ros2Robot

        if simulated:
            stay_on_this_machine()
        return Ros2Robot(contract), whereabouts()
    from moe_robot.deploy.backends.rosbridge import RosbridgeRobot

    address = address or contract.address
    if simulated and not is_loopback(urlsplit(address).hostname or ""):
        raise UserError(
            f"--enable-at-start is for a simulated robot on this machine, and {address} is elsewhere: leave it out, "
            "and enable the robot by hand"
        )
    return RosbridgeRobot(contract, address, ca_file), address
