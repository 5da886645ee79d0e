"""The rosbridge client against a small server that does what real ones were seen to do."""

import asyncio
import json
import socket
import ssl
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from bridge_server import CERTIFICATE, Bridge, Cable, wait_until

import policies
from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.backends.websocket import Timing
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.inference import PolicyProcess
from moe_robot.deploy.loop import ControlLoop
from moe_robot.deploy.robot_io import GatedCommand, JointCommand
from moe_robot.types import UserError

Q = [0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785]
QUICK = Timing(
    open_s=5.0,
    first_pause_s=0.02,
    longest_pause_s=0.1,
    ping_s=0.2,
    close_s=0.1,
    write_s=2.0,
    silence_s=30,
    farewell_s=0,
)
COMMANDS, GRIPPER = "/forward_position_controller/commands", "/gripper_controller/commands"


@pytest.fixture
def patient(pitstop):
    """The PitStop contract with limits of time so wide that a busy machine does not break them."""
    cameras = {name: replace(camera, max_age_s=30.0) for name, camera in pitstop.cameras.items()}
    states = replace(pitstop.joint_states, max_age_s=30.0)
    return replace(
        pitstop, cameras=cameras, joint_states=states, heartbeat_s=60.0, max_skew_s=60.0, max_command_age_s=60.0
    )


@pytest.fixture
def bridge():
    server = Bridge()
    yield server
    server.kill()


@pytest.fixture
def connect(patient):
    """Makes started clients, and stops them in the end."""
    robots = []

    def make(port, contract=patient, timing=QUICK, scheme="ws", **options):
        robots.append(RosbridgeRobot(contract, f"{scheme}://127.0.0.1:{port}", timing=timing, **options))
        robots[-1].start()
        return robots[-1]

    yield make
    for robot in robots:
        robot.stop()


def header():
    now = time.time()
    return {"header": {"stamp": {"sec": int(now), "nanosec": int(now % 1 * 1e9)}, "frame_id": ""}}


def joint_state(contract, q=Q):
    names = [*contract.topic_names, *contract.gripper.joints]
    return header() | {"name": names, "position": [*q, 0.04, 0.04], "velocity": [], "effort": []}


def picture(value=7):
    data = cv2.imencode(".png", np.full((96, 96, 3), value, np.uint8))[1].tobytes()
    return header() | {"format": "png", "data": data}


def tell_all(bridge, contract):
    bridge.tell(contract.joint_states.topic, joint_state(contract))
    for camera in contract.cameras.values():
        bridge.tell(camera.topic, picture())


def connected(robot, bridge, epoch=1, clients=None):
    """Waits for the connection at both ends: the ``epoch``-th of the robot, by now the ``clients``-th of the bridge."""
    wait_until(lambda: robot.status().connected and robot.status().epoch >= epoch, "the connection")
    wait_until(lambda: len(bridge.clients) >= (clients or epoch), "the connection at the bridge")


def sensing(robot, bridge, contract):
    """Waits until everything that was told has come."""
    connected(robot, bridge, clients=len(bridge.clients) or 1)
    tell_all(bridge, contract)
    wait_until(lambda: len(robot.latest().images) == 2 and robot.latest().joints, "the sensors' messages")


def command(robot, value=0.0, epoch=None):
    q = np.array([Q]) + value
    return GatedCommand(JointCommand(q, None, robot.now()), robot.now(), epoch or robot.latest().epoch)


def test_it_subscribes_to_and_announces_what_the_contract_says(bridge, connect, patient):
    connected(connect(bridge.port), bridge)
    wait_until(lambda: len(bridge.heard) == 5, "five operations")
    assert {(said["topic"], said["type"]) for said in bridge.operations("subscribe")} == {
        ("/front/image_raw/compressed", "sensor_msgs/msg/CompressedImage"),
        ("/wrist/image_raw/compressed", "sensor_msgs/msg/CompressedImage"),
        ("/joint_states", "sensor_msgs/msg/JointState"),
    }
    assert all(said["compression"] == "cbor" and said["queue_length"] == 1 for said in bridge.operations("subscribe"))
    assert {said["topic"]: said["queue_size"] for said in bridge.operations("advertise")} == {COMMANDS: 1, GRIPPER: 1}


def test_message_types_are_spelled_as_ros_1_does_when_the_contract_says_so(bridge, connect, patient):
    connected(connect(bridge.port, replace(patient, ros=1)), bridge)
    wait_until(lambda: len(bridge.heard) == 5, "five operations")
    assert {said["type"] for said in bridge.heard} == {
        "sensor_msgs/CompressedImage", "sensor_msgs/JointState", "std_msgs/Float64MultiArray"
    }  # fmt: skip


def test_the_newest_of_every_topic_arrives_as_cbor_and_as_json(bridge, connect, patient):
    robot = connect(bridge.port)
    sensing(robot, bridge, patient)
    bridge.tell(patient.joint_states.topic, joint_state(patient, [0.5] * 7), cbor=False)
    wait_until(lambda: robot.latest().joints[-1].positions[0] == 0.5, "the joint state in JSON")
    for value in range(50, 60):
        bridge.tell(patient.cameras["front"].topic, picture(value))
    wait_until(lambda: robot.latest().images["front"].pixels[0, 0, 0] == 59, "the newest picture")
    assert 0 <= robot.now() - robot.latest().images["front"].sensed < 20


def test_a_command_arrives_whole(bridge, connect, patient):
    robot = connect(bridge.port)
    sensing(robot, bridge, patient)
    gated = command(robot)
    assert robot.send(replace(gated, command=replace(gated.command, opening=0.08)))
    wait_until(lambda: bridge.published(GRIPPER), "the command")
    assert bridge.published(COMMANDS) == [{"layout": {"dim": [], "data_offset": 0}, "data": Q}]
    assert bridge.published(GRIPPER)[0]["data"] == [0.08]


def test_the_hold_at_the_end_of_the_program_is_sent_before_the_connection_is_let_go(
    bridge, connect, patient, monkeypatch
):
    robot = connect(bridge.port)
    guard = GuardedRobot(robot, patient)
    sensing(robot, bridge, patient)
    assert guard.enable(live=True) is None
    sensed = guard.sense()
    guard.step(JointCommand(sensed.newest.positions[None] + 0.1, None, sensed.newest.sensed))
    wait_until(lambda: len(bridge.published(COMMANDS)) == 1, "the command")
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        wait_until(lambda: len(bridge.published(COMMANDS)) == 2, "the hold")
        assert robot.status().connected

    monkeypatch.setattr("moe_robot.deploy.backends.rosbridge.time", SimpleNamespace(sleep=pause, time=time.time))
    monkeypatch.setattr(robot, "now", time.monotonic)
    guard.stop()
    assert pauses == [QUICK.farewell_s]
    assert bridge.published(COMMANDS)[-1]["data"] == Q


def test_commands_of_an_outage_are_dropped_and_none_comes_after_it(bridge, connect, patient):
    robot = connect(bridge.port)
    connected(robot, bridge)
    before = command(robot)
    bridge.kill()
    wait_until(lambda: not robot.status().connected, "the outage")
    assert [robot.send(command(robot, 0.001 * i)) for i in range(60)] == [False] * 60
    second = Bridge(bridge.port)
    try:
        connected(robot, second, epoch=2, clients=1)
        assert not robot.send(before)  # it was judged by what the old connection told
        assert robot.send(command(robot, 0.1))
        wait_until(lambda: second.published(COMMANDS), "the command after the outage")
        assert [message["data"][0] for message in second.published(COMMANDS)] == [0.1]
        assert robot.status().counts["commands dropped"] == 61
        assert len(second.operations("subscribe")) == 3
    finally:
        second.kill()


def test_after_a_new_connection_the_robot_must_be_enabled_again(bridge, connect, patient):
    robot = connect(bridge.port)
    guard = GuardedRobot(robot, patient)
    sensing(robot, bridge, patient)

    def step():
        sensed = guard.sense()
        return guard.step(JointCommand(sensed.newest.positions[None], None, sensed.newest.sensed))

    assert guard.enable(live=True) is None
    assert step().failure is None
    wait_until(lambda: bridge.published(COMMANDS), "the command before the outage")
    bridge.clients[-1].socket.shutdown(socket.SHUT_RDWR)
    connected(robot, bridge, epoch=2)
    tell_all(bridge, patient)
    wait_until(lambda: len(robot.latest().images) == 2 and robot.latest().joints, "the sensors' messages")
    decision = step()
    assert (decision.failure.rule, guard.state) == ("epoch", State.HELD)
    count = len(bridge.published(COMMANDS))
    assert step().send is None
    assert guard.enable(live=True) is None
    step()
    wait_until(lambda: len(bridge.published(COMMANDS)) == count + 1, "the command after enabling")
    assert {said["client"] for said in bridge.operations("publish")} == {0, 1}


def test_a_half_open_line_is_noticed_and_given_up(bridge, connect, patient):
    cable = Cable(bridge.port)
    robot = connect(cable.port)
    try:
        sensing(robot, bridge, patient)
        cable.freeze()
        wait_until(lambda: not robot.status().connected, "the end of the connection")
        assert not robot.send(command(robot))
        cable.thaw()
        connected(robot, bridge, epoch=2)
        assert robot.latest().joints == ()  # nothing of the old connection counts
        assert bridge.published(COMMANDS) == []
    finally:
        cable.close()


def test_while_the_line_is_silent_the_gate_stops_the_robot_long_before_the_connection_ends(bridge, connect, patient):
    contract = replace(patient, joint_states=replace(patient.joint_states, max_age_s=0.2), max_skew_s=60.0)
    cable = Cable(bridge.port)
    robot = connect(cable.port, contract, timing=replace(QUICK, ping_s=30.0))
    guard = GuardedRobot(robot, contract)
    try:
        sensing(robot, bridge, contract)

        def enabled():
            tell_all(bridge, contract)
            return guard.enable(live=True) is None

        wait_until(enabled, "enabling")
        cable.freeze()

        decisions = []

        def held():
            sensed = guard.sense()
            decisions.append(guard.step(JointCommand(sensed.newest.positions[None], None, robot.now())))
            return guard.state is State.HELD

        wait_until(held, "the hold")
        assert decisions[-1].failure.rule == "freshness"
        assert robot.status().connected
        cable.thaw()
        for _ in range(10):
            assert guard.step(JointCommand(np.array([Q]), None, robot.now())).send is None
        sent = sum(decision.send is not None for decision in decisions)
        assert len(bridge.published(COMMANDS)) <= sent  # all of them from before the hold, the hold with them
    finally:
        cable.close()


def test_a_topic_that_is_silent_is_subscribed_again_in_the_other_form(bridge, connect, patient):
    robot = connect(bridge.port, timing=replace(QUICK, silence_s=0.1))
    asked = lambda: [said for said in bridge.heard if said.get("topic") == "/joint_states"]  # noqa: E731
    wait_until(lambda: len(asked()) >= 5, "a second and a third subscription")
    assert [said["op"] for said in asked()[:5]] == ["subscribe", *["unsubscribe", "subscribe"] * 2]
    forms = [said["compression"] for said in asked() if said["op"] == "subscribe"]
    assert forms[:3] == ["cbor", "none", "cbor"]
    wait_until(lambda: "is silent" in (robot.status().trouble or ""), "the diagnosis")


def test_bad_frames_are_counted_and_do_no_harm(bridge, connect, patient):
    robot = connect(bridge.port)
    connected(robot, bridge)
    unasked = [
        json.dumps({"op": "publish", "topic": "/evil", "msg": {}}),
        json.dumps({"op": "publish", "topic": "/joint_states", "msg": [1]}),
        json.dumps({"op": "fragment"}),
    ]
    frames = ["{", b"\x81" * 9999, "[" * 9999, b"", *unasked]
    for frame in frames:
        bridge.say(frame)
    wait_until(lambda: robot.status().counts.get("bad frames") == len(frames), "the bad frames")
    bridge.say(json.dumps({"op": "status", "level": "error", "msg": "no such\ntype" + "x" * 9999}))
    wait_until(lambda: "complaints of the bridge" in robot.status().counts, "the complaint")
    assert "no such\\ntype" in robot.status().trouble
    assert len(robot.status().trouble) <= 300
    sensing(robot, bridge, patient)
    assert robot.status().epoch == 1


def test_a_message_that_is_too_large_ends_the_connection_and_not_the_client(bridge, connect, patient):
    robot = connect(bridge.port)
    connected(robot, bridge)
    bridge.say(bytes(12 * 2**20))
    connected(robot, bridge, epoch=2)
    assert "message too big" in robot.status().trouble or "1009" in robot.status().trouble
    sensing(robot, bridge, patient)


def test_a_command_that_waited_longer_than_a_step_is_dropped(bridge, connect, patient):
    robot = connect(bridge.port)
    connected(robot, bridge)
    old = command(robot)
    assert robot.send(replace(old, at=old.at - 2 * patient.period_s))
    wait_until(lambda: robot.status().counts.get("commands dropped") == 1, "the drop")
    assert bridge.published(COMMANDS) == []
    assert robot.send(replace(old, at=old.at - 2 * patient.period_s, hold=True))  # but a hold is never too late
    wait_until(lambda: bridge.published(COMMANDS), "the hold")


def test_it_keeps_trying_with_pauses_that_grow_to_a_limit(monkeypatch, connect):
    pauses, real = [], asyncio.sleep

    async def note(seconds):
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr("moe_robot.deploy.backends.websocket.asyncio.sleep", note)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    robot = connect(free, timing=Timing())
    wait_until(lambda: len(pauses) >= 8, "eight attempts")
    assert pauses[:8] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert "127.0.0.1" in robot.status().trouble


def test_a_redirect_to_another_place_is_not_followed(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def redirect():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                client.recv(4096)
                client.sendall(b"HTTP/1.1 302 Found\r\nLocation: ws://192.0.2.1:1/\r\nContent-Length: 0\r\n\r\n")
                client.close()

        threading.Thread(target=redirect, daemon=True).start()
        robot = connect(port)
        wait_until(lambda: "302" in (robot.status().trouble or ""), "the refusal")


def test_a_policy_drives_an_arm_behind_the_bridge(bridge, connect, patient):
    arm, over = np.array(Q), threading.Event()

    def live():  # the arm goes where it was told last, and tells where it is
        while not over.wait(0.02):
            for message in bridge.published(COMMANDS)[-1:]:
                arm[:] = message["data"]
            bridge.tell(patient.joint_states.topic, joint_state(patient, arm.tolist()) | {"velocity": [0.0] * 9})
            for camera in patient.cameras.values():
                bridge.tell(camera.topic, picture())

    robot = connect(bridge.port)
    connected(robot, bridge)
    guard, process = GuardedRobot(robot, patient), PolicyProcess(policies.pointing)
    loop, steps = ControlLoop(guard, patient, process, "push"), []
    process.start()
    threading.Thread(target=live, daemon=True).start()
    try:
        wait_until(lambda: process.ready, "loading")
        wait_until(lambda: guard.enable(live=True) is None, "enabling")
        start = patient.chain.forward(arm)[0]
        loop.run(lambda: len(steps) >= 8 and patient.chain.forward(arm)[0][0] - start[0] > 0.05, steps.append)
        assert guard.state is State.ENABLED
        assert np.abs(patient.chain.forward(arm)[0] - start)[1:].max() < 0.01
    finally:
        over.set()
        process.stop()


def test_a_certificate_is_verified(connect, patient):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server = Bridge(context=context)
    try:
        stranger = connect(server.port, scheme="wss")
        wait_until(lambda: "certificate verify failed" in (stranger.status().trouble or ""), "the refusal")
        assert not stranger.status().connected
        friend = connect(server.port, scheme="wss", ca_file=CERTIFICATE)
        connected(friend, server)
        sensing(friend, server, patient)
    finally:
        server.kill()


def test_an_open_address_is_refused_whoever_gives_it(patient, tmp_path):
    with pytest.raises(UserError, match="neither encrypted nor on this machine"):
        RosbridgeRobot(patient, "ws://10.0.0.7:9090")
    RosbridgeRobot(replace(patient, insecure_hosts=("10.0.0.7",)), "ws://10.0.0.7:9090").stop()
    with pytest.raises(UserError, match="expected a PEM file"):
        RosbridgeRobot(patient, "wss://10.0.0.7:9090", ca_file=tmp_path / "none.pem")
