"""The simulated robot: PitStop's state as ROS messages, ROS messages as its commands, and episodes that are judged."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bridge_server import Bridge, wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from moe_robot.cli.sim_node import host_and_port
from moe_robot.deploy import codecs, command_messages
from moe_robot.deploy.backends import rosbridge_wire as wire
from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.backends.websocket import Timing
from moe_robot.deploy.contract_topics import CommandSink
from moe_robot.deploy.robot_io import JointCommand
from moe_robot.deploy.simulation.bridge import BridgeServer
from moe_robot.deploy.simulation.node import SimNode
from moe_robot.deploy.simulation.robot import SimulatedRobot, world_options
from moe_robot.deploy.simulation.server import RESET
from moe_robot.registry import make_environment
from moe_robot.types import UserError

STAMP = 1_700_000_000.25
COMMANDS = "/forward_position_controller/commands"


@pytest.fixture(scope="module")
def env(pitstop):
    made = make_environment("pitstop", **world_options(pitstop))
    yield made
    made.close()


@pytest.fixture
def robot(env, pitstop):
    env.reset(seed=3)
    return SimulatedRobot(env.unwrapped, pitstop)


@pytest.fixture
def server(robot):
    made = BridgeServer("127.0.0.1", 0, robot.sources, robot.sinks)
    made.port = made.start()
    yield made
    made.stop()


def everything(robot):
    """All messages of the first two control periods."""
    told = []
    for _ in range(10):
        robot.advance()
        told.append(robot.messages(STAMP, lambda topic: True))
    return told


@pytest.mark.parametrize("cbor", [True, False])
def test_what_it_tells_is_what_the_world_is(robot, env, pitstop, cbor):
    told = {topic: content for told in everything(robot) for topic, content in told.items()}
    heard = {topic: wire.parse(wire.told(topic, content, cbor))["msg"] for topic, content in told.items()}
    positions, velocities, opening = codecs.joint_state(heard["/joint_states"], pitstop)
    measured, speeds = env.unwrapped.joints()
    np.testing.assert_allclose(positions, measured[:7], rtol=1e-15)
    np.testing.assert_allclose(velocities, speeds[:7], rtol=1e-15)
    assert opening == pytest.approx(measured[7:].sum())
    for name, camera in pitstop.cameras.items():
        np.testing.assert_array_equal(codecs.picture(heard[camera.topic], camera), env.unwrapped.pictures()[name])
    assert codecs.stamp_of(heard["/joint_states"]) == pytest.approx(STAMP)


def test_each_topic_comes_at_its_rate_and_only_when_somebody_listens(robot):
    told = everything(robot)
    assert sum("/joint_states" in messages for messages in told) == 10  # 50 Hz over 0.2 s
    assert sum("/front/image_raw/compressed" in messages for messages in told) == 2
    assert robot.messages(STAMP, lambda topic: False) == {}


def test_jpeg_is_nearly_what_the_camera_sees(env, pitstop):
    env.reset(seed=3)
    robot = SimulatedRobot(env.unwrapped, pitstop, "jpeg")
    message = next(told for told in everything(robot)[::-1] if "/front/image_raw/compressed" in told)
    seen = codecs.picture(message["/front/image_raw/compressed"], pitstop.cameras["front"])
    assert 0 < np.abs(seen.astype(float) - env.unwrapped.pictures()["front"]).mean() < 8


def test_it_goes_where_a_gated_command_says(robot, env, pitstop):
    target = env.unwrapped.joint_positions() + 0.05
    command = JointCommand(target[None], 0.02, 0.0)
    for topic, message in command_messages.messages(command, pitstop, 0.0).items():
        assert robot.obey(topic, message) is None
    for _ in range(25):
        robot.advance()
    positions, _ = env.unwrapped.joints()
    np.testing.assert_allclose(positions[:7], target, atol=0.003)
    assert positions[7:].sum() == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("data", [[0.0] * 6, [0.0] * 6 + [None], [0.0] * 6 + [float("inf")], "0123456", None, [[1]]])
def test_a_command_that_is_not_seven_finite_numbers_is_left_out(robot, env, data):
    before = env.unwrapped.joint_positions()
    assert "expected 7 finite numbers" in robot.obey(COMMANDS, {"data": data})
    robot.advance()
    np.testing.assert_allclose(env.unwrapped.joint_positions(), before, atol=0.001)


def test_a_contract_of_another_robot_is_refused(env, pitstop):
    joints = (replace(pitstop.joints[0], name="shoulder"), *pitstop.joints[1:])
    with pytest.raises(UserError, match="has the joints shoulder, joint2"):
        SimulatedRobot(env.unwrapped, replace(pitstop, joints=joints, state=()))
    with pytest.raises(UserError, match="and the world joint1"):
        SimulatedRobot(env.unwrapped, replace(pitstop, gripper=replace(pitstop.gripper, joints=("finger",))))
    chunks = CommandSink("/arm/joint_trajectory", "trajectory_msgs/msg/JointTrajectory")
    with pytest.raises(UserError, match="expected std_msgs/msg/Float64MultiArray"):
        world_options(replace(pitstop, command=chunks))


def test_a_client_that_asks_for_what_is_not_there_is_told(server):
    with connect(f"ws://127.0.0.1:{server.port}") as client:
        for said, complaint in (
            (wire.subscribe("/nowhere", "std_msgs/msg/String", True), "nothing to subscribe on '/nowhere'"),
            (wire.subscribe("/joint_states", "std_msgs/msg/String", True), "of type sensor_msgs/msg/JointState"),
            (wire.publish("/joint_states", {}), "nothing to publish on '/joint_states'"),
            ('{"op": "fragment"}', "'fragment' is not offered"),
            ("{", "no JSON"),
        ):
            client.send(said)
            assert complaint in wire.parse(client.recv(timeout=20))["msg"]
    assert server.take() == {}


def test_a_page_in_a_browser_cannot_connect(server):
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{server.port}", origin="http://evil.example").close()


def test_a_restart_breaks_connections_and_forgets_their_commands(server, pitstop):
    robot = RosbridgeRobot(pitstop, f"ws://127.0.0.1:{server.port}", timing=Timing(first_pause_s=0.02))
    robot.start()
    try:
        wait_until(lambda: server.wanted("/joint_states"), "the subscription")
        assert robot.simulated
        with connect(f"ws://127.0.0.1:{server.port}") as client:
            client.send(wire.publish(COMMANDS, {"data": [0.0] * 7}))
            wait_until(lambda: server._heard, "the command")
            server.restart()
        assert server.take() == {}
        wait_until(lambda: robot.epoch == 2, "the new connection")
    finally:
        robot.stop()


def test_any_other_bridge_does_not_pass_for_simulated(pitstop):
    bridge = Bridge()
    robot = RosbridgeRobot(pitstop, f"ws://127.0.0.1:{bridge.port}")
    robot.start()
    try:
        assert robot.simulated is None
        wait_until(lambda: robot.epoch == 1, "the connection")
        assert robot.simulated is False
    finally:
        robot.stop()
        bridge.kill()


class Silent:
    """A server without clients, on which a command comes at one moment."""

    def __init__(self, moment, data):
        self.moment, self.data, self.taken, self.restarts = moment, data, 0, 0

    def take(self):
        self.taken += 1
        return {COMMANDS: {"data": self.data}} if self.taken == self.moment else {}

    def wanted(self, topic):
        return False

    def restart(self):
        self.restarts += 1

    def wants_reset(self):
        return False


def test_an_episode_runs_from_its_first_command_to_the_time_limit(env, robot):
    complaints, clock = [], [0.0]
    server = Silent(100, env.unwrapped.joint_positions().tolist())
    node = SimNode(env, robot, server, "pick_red_cube", 3, complaints.append)

    def sleep(seconds):
        clock[0] += seconds

    outcome = node.episode(now=lambda: clock[0], sleep=sleep)
    assert (outcome.task, outcome.seed, outcome.result) == ("pick_red_cube", 3, "time out")
    assert outcome.seconds == pytest.approx(10.0)
    assert clock[0] == pytest.approx(10.0 + 99 * 0.02, abs=0.05)
    assert outcome.behind_s == 0.0
    assert server.restarts == 2
    assert complaints == []


def test_success_ends_an_episode_and_the_next_has_the_next_seed(env, robot):
    node = SimNode(env, robot, Silent(1, [0.0] * 7), "press_red", 5)
    real, asked = env.unwrapped.outcome, []
    env.unwrapped.outcome = lambda: real() | {"success": bool(asked.append(1)) or len(asked) == 3}
    try:
        outcomes = [node.episode(sleep=lambda seconds: None, now=lambda: 0.0)]
        node._server = Silent(1, [0.0] * 7)
        asked.clear()
        outcomes.append(node.episode(sleep=lambda seconds: None, now=lambda: 0.0))
    finally:
        del env.unwrapped.outcome
    assert [(outcome.seed, outcome.result) for outcome in outcomes] == [(5, "success"), (6, "success")]
    assert outcomes[0].seconds == pytest.approx(0.3)


def test_a_machine_that_is_too_slow_is_told_and_not_hurried_after(env, robot):
    server = Silent(1, env.unwrapped.joint_positions().tolist())
    node, clock = SimNode(env, robot, server, "pick_red_cube", 3), [0.0]

    def now():
        clock[0] += 0.04  # asked twice in every update of 0.02 s
        return clock[0]

    outcome = node.episode(now=now, sleep=lambda seconds: None)
    assert outcome.seconds == pytest.approx(10.0)
    assert outcome.behind_s == pytest.approx(30.0, rel=0.05)


class Waiting:
    """A server whose client answers each moment after it has been told twice; it keeps what it was told."""

    def __init__(self, commands):
        self.commands, self.marks, self.told, self.reset = commands, [], 0, False
        """Topic, numbers, and how many moments ago that was which each answers; None for no mark."""

    def wanted(self, topic):
        return True

    def tell(self, topic, message):
        self.marks.append(message["header"]["frame_id"])
        self.told += 1

    def take_each(self):
        if self.told < 6:  # three topics, twice
            return []
        self.told = 0
        marks = [None, *dict.fromkeys(self.marks)]
        return [
            (topic, self.answer(data, None if ago is None else marks[-1 - ago])) for topic, data, ago in self.commands
        ]

    @staticmethod
    def answer(data, mark):
        return {"layout": {"dim": [{"label": mark, "size": 1, "stride": 1}] if mark else []}, "data": data}

    def restart(self):
        self.reset = False

    def wants_reset(self):
        return self.reset


def test_in_lockstep_the_world_moves_by_one_control_step_for_each_answer_to_its_moment(env, robot):
    still, other, gripper = [0.0] * 7, [0.1] * 7, "/gripper_controller/commands"
    # Neither a hold, which bears no mark, nor what answers the moment before moves the world on.
    strangers = [(COMMANDS, other, None), (COMMANDS, other, 1), (gripper, [0.08], 1)]
    server = Waiting([*strangers, (COMMANDS, still, 0), (gripper, [0.04], 0), *strangers])
    node = SimNode(env, robot, server, "pick_red_cube", 3, lockstep=True)
    obeyed, obey = [], robot.obey
    robot.obey = lambda topic, message: obeyed.append((topic, message["data"])) or obey(topic, message)
    outcome = node.episode()
    assert (outcome.result, outcome.seconds) == ("time out", pytest.approx(10.0))
    assert obeyed == [(COMMANDS, still), (gripper, [0.04])] * 100
    assert len(dict.fromkeys(server.marks)) == 100


@pytest.mark.parametrize("lockstep", [True, False])
def test_after_a_reset_the_episode_begins_anew(env, robot, lockstep):
    server, said = Waiting([]), []
    server.take = dict
    node = SimNode(env, robot, server, "pick_red_cube", 3, said.append, lockstep)
    begun, env.unwrapped.data.qpos[0] = env.unwrapped.joint_positions(), 1.0
    begin, server.reset, places = node._begin, True, []

    def stop():
        begin()
        places.append(env.unwrapped.joint_positions())
        raise InterruptedError

    node._begin = stop
    with pytest.raises(InterruptedError):
        node.episode()
    np.testing.assert_array_equal(places, [begun])
    assert not server.wants_reset()


def test_a_reset_is_a_service_of_the_bridge_and_another_is_refused(server):
    with connect(f"ws://127.0.0.1:{server.port}") as client:
        for service, success in (("/nowhere", False), (RESET, True)):
            client.send(json.dumps({"op": "call_service", "id": "7", "service": service, "args": {}}))
            answer = wire.parse(client.recv(timeout=20))
            assert (answer["op"], answer["id"], answer["result"]) == ("service_response", "7", success)
            assert answer["values"]["success"] == success == server.wants_reset()
    server.restart()
    assert not server.wants_reset()


def test_only_this_machine_reaches_it_unless_that_is_allowed():
    assert host_and_port("127.0.0.1:9090", False) == ("127.0.0.1", 9090)
    assert host_and_port("[::1]:0", False) == ("::1", 0)
    assert host_and_port("0.0.0.0:9090", True) == ("0.0.0.0", 9090)
    with pytest.raises(UserError, match="--expose"):
        host_and_port("0.0.0.0:9090", False)
    for address in ("127.0.0.1", "9090", ":9090", "a:b", "[::1"):
        with pytest.raises(UserError, match="expected HOST:PORT"):
            host_and_port(address, False)


def test_a_port_that_is_taken_is_told_in_one_line(server):
    with pytest.raises(UserError, match="give another --address"):
        BridgeServer("127.0.0.1", server.port, {}, {}).start()
