"""Collected only where rclpy is, by ``tests/deploy/test_ros2.py``; every test has a domain of its own."""

import itertools
import os

import pytest
from commands import patient_contract, untrained_checkpoint
from ros2_side import COMMANDS, GRIPPER, POSITION, STATES, hear

from moe_robot.deploy.backends.ros2 import Ros2Robot
from moe_robot.deploy.backends.ros2_messages import available
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.simulation.ros2_server import Ros2Server

if not available():
    collect_ignore_glob = ["test_*.py"]

DOMAINS = itertools.count(os.getpid())


@pytest.fixture(autouse=True)
def domain(monkeypatch) -> int:
    """Of this test's nodes; the processes that it starts inherit it."""
    number = 1 + next(DOMAINS) % 100  # ports above 101's may be taken by others
    monkeypatch.setenv("ROS_DOMAIN_ID", str(number))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return number


@pytest.fixture(scope="session")
def patient_file(tmp_path_factory):
    return patient_contract(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="session")
def patient(patient_file):
    return load_contract(patient_file)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return untrained_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def tells(patient):
    return {camera.topic: camera.type for camera in patient.cameras.values()} | {STATES: "sensor_msgs/msg/JointState"}


@pytest.fixture
def start():
    """Starts servers and robots, and stops them in the end."""
    started = []

    def begin(one):
        one.start()
        started.append(one)
        return one

    yield begin
    for one in reversed(started):
        one.stop()


@pytest.fixture
def server(start, tells):
    return start(Ros2Server(tells, {COMMANDS: POSITION, GRIPPER: POSITION}))


@pytest.fixture
def robot(start, patient, server):
    io = start(Ros2Robot(patient))
    hear(io, server, patient)
    return io
