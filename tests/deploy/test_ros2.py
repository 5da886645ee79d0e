"""Native ROS 2: the tests of the folder ``native``, run where there is a real one. They fail where it cannot be had."""

from pathlib import Path

import pytest
from ros_environment import ros_python, run_tests

NATIVE = Path(__file__).parent / "native"


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> Path:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base  # of all workers
    return ros_python(shared / "ros")


def test_in_real_ros_2(python):
    run_tests(python, "-m", "not full", NATIVE)


@pytest.mark.full
@pytest.mark.parametrize("what", ["lockstep", "package", "paired", "peers", "ros2_processes", "rosbridge_server"])
def test_in_real_ros_2_at_length(python, what):
    run_tests(python, "-m", "full", NATIVE / f"test_{what}.py")
