"""``sim-node`` and ``deploy`` as people run them: two processes over real DDS, a policy that has learned nothing."""

import signal

import pytest
from commands import INSTRUCTION


def test_an_episode_over_ros_2(command, patient_file, checkpoint, domain):
    node = command("sim-node", "--contract", patient_file, "--episodes", 1)  # auto: there is a rclpy here
    assert node.says(r"lives on (.*) \(Ctrl-C")[1] == f"ROS 2, domain {domain} (LOCALHOST)"
    deploy = command(
        "deploy", checkpoint, "--contract", patient_file, "--instruction", INSTRUCTION, "--live", "--enable-at-start",
        "--json",
    )  # fmt: skip
    deploy.process.stdin.close()
    deploy.says(rf"connecting to ROS 2, domain {domain} \(LOCALHOST\)")
    deploy.says("enabled, live")
    outcome = node.says(r"episode 1/1: pick_red_cube, seed 100000, .*: (time out|wrong) after (\S+) s")
    assert node.wait() == 0
    deploy.says("no connection")
    assert deploy.end(signal.SIGINT) == 130
    summary = deploy.summary()
    assert summary["commands"]["sent"] == summary["commands"]["passed"] > 0
    assert summary["holds"]
    assert summary["state"] == "held"
    assert outcome[1] != "time out" or float(outcome[2]) == 10.0
    assert "moe-robot deploy: interrupted; the robot was told to hold" in deploy.lines


@pytest.mark.full
def test_what_is_no_simulation_is_not_enabled_by_itself(command, patient_file, checkpoint):
    node = command("sim-node", "--contract", patient_file)
    node.says("lives on")
    other = command(code=STRANGER)
    other.says("there")
    deploy = command(
        "deploy", checkpoint, "--contract", patient_file, "--instruction", INSTRUCTION, "--enable-at-start"
    )
    assert deploy.wait() == 1
    assert "--enable-at-start is for a simulated robot, and what answers at ROS 2" in deploy.lines[-1]
    assert node.process.poll() is None


STRANGER = """
from moe_robot.deploy.backends.ros2_messages import message_type
from moe_robot.deploy.backends.ros2_spin import SpunNode
node = SpunNode("camera_driver").start(print)
node.create_publisher(message_type("sensor_msgs/msg/JointState"), "/joint_states", 1)
print("there", flush=True)
import time
time.sleep(1000)
"""
