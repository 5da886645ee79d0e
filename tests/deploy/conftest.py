"""Contracts of three robots, and the rosbridge server of the tests where Python finds it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.contract_topics import CommandSink

SUPPORT = Path(__file__).parent / "support"
sys.path.insert(0, str(SUPPORT))  # at import: test modules import from it


@pytest.fixture
def command():
    """Starts ``moe-robot`` as people do, in a process of its own, and ends it with the test."""
    from commands import commands  # loads torch, which few of these tests need

    with commands() as start:
        yield start


@pytest.fixture(scope="session")
def pitstop():
    """The shipped contract: seven joints with a chain, two cameras, a gripper, one position at a time."""
    return load_contract("pitstop")


@pytest.fixture(scope="session")
def chunks(pitstop):
    """The same arm behind a controller that takes whole trajectories."""
    return replace(pitstop, command=CommandSink("/arm/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"))


@pytest.fixture(scope="session")
def twists(pitstop):
    """The same arm behind MoveIt Servo."""
    sink = CommandSink("/servo/twist", "geometry_msgs/msg/TwistStamped", robot_timeout_s=0.2, frame="panda_link0")
    return replace(pitstop, command=sink, tool=replace(pitstop.tool, speed_step=0.2, turn_step=1.0))
