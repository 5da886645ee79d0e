"""The ament package: ``colcon build`` makes it, and what it installs is the node."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
import yaml
from bridge_server import wait_until
from commands import INSTRUCTION, STARTING_S

from moe_robot.deploy.backends.ros2_messages import message_type
from moe_robot.deploy.backends.ros2_spin import SpunNode
from moe_robot.deploy.policy_node import PARAMETERS

PACKAGE = Path(__file__).parents[3] / "ros2/moe_robot_ros"


def test_the_package_file_names_what_the_node_imports():
    tree = xml.parse(PACKAGE / "package.xml").getroot()
    assert tree.get("format") == "3"
    assert tree.findtext("export/build_type") == "ament_python"
    depends = {one.text for one in tree.findall("exec_depend")}
    assert {"rclpy", "sensor_msgs", "std_msgs", "std_srvs", "diagnostic_msgs", "trajectory_msgs"} <= depends


def test_the_params_file_has_every_parameter_with_its_default():
    told = yaml.safe_load((PACKAGE / "config/params.yaml").read_text())
    assert told["/**"]["ros__parameters"] == PARAMETERS


@pytest.mark.full
def test_colcon_builds_it_and_the_installed_node_loads_a_checkpoint(tmp_path, patient_file, checkpoint, command):
    shutil.copytree(PACKAGE, tmp_path / "src/moe_robot_ros")
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    build = [sys.executable, "-m", "colcon", "--log-base", "log", "build", "--base-paths", "src"]
    done = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = tmp_path / "install/moe_robot_ros"
    for file in ("share/ament_index/resource_index/packages/moe_robot_ros", "share/moe_robot_ros/package.xml",
                 "share/moe_robot_ros/config/params.yaml", "share/moe_robot_ros/launch/policy.launch.py"):  # fmt: skip
        assert (installed / file).exists(), file

    (site,) = installed.glob("lib/python3.*/site-packages")
    params = tmp_path / "params.yaml"
    given = {"checkpoint": str(checkpoint), "contract": str(patient_file), "instruction": INSTRUCTION}
    params.write_text(yaml.safe_dump({"/**": {"ros__parameters": given | {"robot_wait_s": 60.0}}}))
    sim = command("sim-node", "--contract", patient_file)
    sim.says("lives on")
    node = subprocess.Popen(
        [installed / "lib/moe_robot_ros/policy_node", "--ros-args", "--params-file", params, "-r", "__node:=chief"],
        env=environment | {"PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"},
    )
    spun = SpunNode("person")
    person = spun.start(lambda why: None)
    try:
        for transition in (1, 3):  # configure, activate
            kind = message_type("lifecycle_msgs/srv/ChangeState")
            client = person.create_client(kind, "/chief/change_state")
            assert client.wait_for_service(timeout_sec=STARTING_S)
            request = kind.Request()
            request.transition.id = transition
            future = client.call_async(request)
            wait_until(future.done, f"transition {transition}", 5 * STARTING_S)
            assert future.result().success
    finally:
        spun.stop()
        node.terminate()
        assert node.wait(STARTING_S) == 0
