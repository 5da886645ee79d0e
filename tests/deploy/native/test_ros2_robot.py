"""A robot on ROS 2 and the simulated robot's side of it, over real DDS in one process."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from bridge_server import wait_until
from ros2_side import COMMANDS, FRONT, GRIPPER, PICTURE, POSITION, STATES, header, hear, send

from moe_robot.deploy import codecs
from moe_robot.deploy.backends.ros2 import Ros2Robot
from moe_robot.deploy.backends.ros2_messages import message, message_type, plain, ros2
from moe_robot.deploy.backends.ros2_spin import SpunNode
from moe_robot.deploy.contract_topics import CommandSink
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.robot_io import GatedCommand, JointCommand, TwistCommand
from moe_robot.deploy.simulation.ros2_server import Ros2Server
from moe_robot.types import UserError


def test_what_is_published_is_what_the_policy_gets(robot, patient):
    snapshot = robot.latest()
    for name in patient.cameras:
        np.testing.assert_array_equal(snapshot.images[name].pixels, PICTURE)
    np.testing.assert_allclose(snapshot.joints[-1].positions, patient.tool.posture, rtol=1e-15)
    assert snapshot.joints[-1].opening == pytest.approx(0.03)
    assert abs(snapshot.joints[-1].sensed - robot.now()) < 30
    wait_until(lambda: robot.latest() and robot.simulated, "the name of the node")
    assert robot.status().connected


def test_a_command_arrives_as_the_controllers_take_it(robot, server):
    q = np.linspace(-1, 1, 7)
    assert send(robot, q, opening=0.02)
    heard = {}
    wait_until(lambda: heard.update(server.take()) or len(heard) == 2, "the command")
    np.testing.assert_array_equal(heard[COMMANDS]["data"], q)
    np.testing.assert_allclose(heard[GRIPPER]["data"], [0.02])


def test_a_robot_that_begins_anew_is_another_epoch_and_drops_what_was_judged_before(robot, server, patient):
    before = robot.epoch
    server.restart()
    wait_until(lambda: robot.latest().epoch == before + 1, "the new epoch")
    assert not robot.latest().images
    assert not send(robot, np.zeros(7), epoch=before)
    assert robot.status().counts["commands dropped"] == 1
    hear(robot, server, patient)
    assert send(robot, np.zeros(7))


def test_a_robot_that_is_gone_is_told_and_nothing_waits_for_its_return(robot, server, start, tells, patient):
    server.stop()
    wait_until(lambda: not robot.latest().epoch or not robot.status().connected, "the loss")
    assert "nothing publishes /front" in robot.status().trouble
    for _ in range(20):
        assert not send(robot, np.full(7, 0.5))
    again = start(Ros2Server(tells, {COMMANDS: POSITION, GRIPPER: POSITION}))
    wait_until(lambda: robot.latest().epoch == 2, "the new epoch")
    hear(robot, again, patient)
    time.sleep(0.3)  # for what should not come
    assert again.take() == {}
    assert send(robot, np.zeros(7))


def test_an_enabled_robot_is_held_when_its_publishers_change(patient, robot, server):
    guarded = GuardedRobot(robot, patient)
    assert guarded.enable(live=True) is None
    server.restart()
    wait_until(lambda: robot.latest().epoch == 2, "the new epoch")
    hear(robot, server, patient)
    guarded.sense()
    decision = guarded.step(None)
    assert decision.state is State.HELD
    assert decision.failure.rule == "epoch"


def test_without_a_controller_there_is_no_connection(start, patient, tells):
    start(Ros2Server(tells, {COMMANDS: POSITION}))
    io = start(Ros2Robot(patient))
    complaint = f"nobody hears commands on {GRIPPER}"  # at first of the other topic too, until it has been discovered
    wait_until(lambda: io.latest() and complaint in (io.status().trouble or ""), "the complaint")
    assert not io.status().connected


def test_a_controller_of_another_type_is_named(start, patient, tells):
    start(Ros2Server(tells, {COMMANDS: "trajectory_msgs/msg/JointTrajectory", GRIPPER: POSITION}))
    io = start(Ros2Robot(patient))
    expected = f"{COMMANDS} is heard as trajectory_msgs/msg/JointTrajectory, and not {POSITION}: correct the contract"
    wait_until(lambda: io.latest() and io.status().trouble == expected, "the complaint")


def test_what_does_not_fit_the_contract_is_refused_and_counted(robot, server):
    server.tell(STATES, header() | {"name": ["elbow"], "position": np.zeros(1), "velocity": [], "effort": []})
    wait_until(lambda: robot.status().counts.get("refused"), "the refusal")
    assert "joint 'panda_joint1' is missing" in robot.status().trouble


def test_other_robots_of_the_network_do_not_pass_for_simulated(start, patient, server, robot):
    stranger = SpunNode("camera_driver")
    node = stranger.start(lambda why: None)
    try:
        node.create_publisher(message_type("sensor_msgs/msg/CompressedImage"), FRONT, 1)
        wait_until(lambda: robot.latest().epoch == 2 and robot.simulated is False, "the second publisher")
    finally:
        stranger.stop()


@pytest.mark.parametrize("kind", ["trajectory_msgs/msg/JointTrajectory", "geometry_msgs/msg/TwistStamped"])
def test_trajectories_and_twists_arrive_whole(start, patient, tells, kind):
    twist = kind.endswith("Stamped")
    sink = CommandSink("/arm/sink", kind, robot_timeout_s=0.2, frame="panda_link0") if twist else CommandSink(
        "/arm/sink", kind
    )  # fmt: skip
    tool = replace(patient.tool, speed_step=0.2, turn_step=1.0)
    contract = replace(patient, command=sink, tool=tool)
    server = start(Ros2Server(tells, {"/arm/sink": kind, GRIPPER: POSITION}))
    io = start(Ros2Robot(contract))
    hear(io, server, contract)
    points = np.linspace(0, 1, 14).reshape(2, 7)
    command = TwistCommand(np.arange(6.0), None, 0.0) if twist else JointCommand(points, None, 0.0)
    assert io.send(GatedCommand(command, io.now(), io.epoch))
    heard = {}
    wait_until(lambda: heard.update(server.take()) or heard, "the command")
    told = heard["/arm/sink"]
    if twist:
        assert told["header"]["frame_id"] == "panda_link0"
        assert abs(codecs.stamp_of(told) - time.time()) < 30
        assert told["twist"]["angular"] == {"x": 3.0, "y": 4.0, "z": 5.0}
    else:
        assert told["joint_names"] == list(contract.topic_names)
        np.testing.assert_array_equal([point["positions"] for point in told["points"]], points)
        assert [point["time_from_start"]["nanosec"] for point in told["points"]] == [10**8, 2 * 10**8]


def test_large_raw_pictures_come_whole_when_reliability_is_asked_for(start, patient, tells):
    camera = replace(patient.cameras["front"], type="sensor_msgs/msg/Image", size=(480, 640), reliability="reliable")
    contract = replace(patient, cameras={"front": camera})
    server = start(Ros2Server({FRONT: camera.type, STATES: tells[STATES]}, {COMMANDS: POSITION, GRIPPER: POSITION}))
    io = start(Ros2Robot(contract))
    wait_until(lambda: io.latest() and io.status().connected, "the connection")
    pixels = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    raw = {"height": 480, "width": 640, "step": 1920, "encoding": "rgb8", "is_bigendian": 0, "data": pixels.tobytes()}

    def heard():
        server.tell(FRONT, header() | raw)
        return io.latest().images

    wait_until(heard, "the picture")
    np.testing.assert_array_equal(io.latest().images["front"].pixels, pixels)


def test_a_message_that_goes_there_and_back_is_the_same():
    fields = header(12.5) | {"name": ["a", "b"], "position": np.array([1.0, np.nan]), "velocity": [2.0], "effort": []}
    back = plain(message("sensor_msgs/msg/JointState", fields))
    assert codecs.stamp_of(back) == 12.5
    assert back["name"] == ["a", "b"]
    np.testing.assert_array_equal(back["position"], [1.0, np.nan])
    np.testing.assert_array_equal(back["velocity"], [2.0])


def test_what_ros_does_not_have_is_told_in_one_line(patient):
    with pytest.raises(UserError, match="std_msgs has no 'std_msgs/msg/Flaot64'"):
        message_type("std_msgs/msg/Flaot64")
    with pytest.raises(UserError, match="no ROS 2"):
        ros2("moveit_msgs.msg")
    with pytest.raises(UserError, match="over rosbridge"):
        Ros2Robot(replace(patient, ros=1))


def test_commands_from_two_threads_and_a_stop_between_them_do_no_harm(robot):
    over = threading.Event()

    def go():
        while not over.is_set():
            send(robot, np.zeros(7))
            robot.latest()

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    robot.stop()
    over.set()
    for thread in threads:
        thread.join()
    assert not send(robot, np.zeros(7))
    assert not robot.status().connected
