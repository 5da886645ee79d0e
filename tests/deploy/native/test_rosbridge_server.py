"""Our rosbridge client, a rosbridge server by others, and real ROS 2 behind it."""

from contextlib import suppress

import numpy as np
import pytest
from bridge_server import Cable, wait_until
from ros2_side import COMMANDS, FRONT, GRIPPER, PICTURE, POSITION, hear, send, tell_all
from rosbridge_rs import RustBridge
from websockets.sync.client import connect

from moe_robot.deploy import codecs
from moe_robot.deploy.backends import rosbridge_wire as wire
from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.backends.websocket import Timing


@pytest.fixture
def bridges(tmp_path):
    """Starts servers, and ends them all."""
    started = []

    def start(port=0):
        started.append(RustBridge(tmp_path, port))
        return started[-1]

    yield start
    for bridge in started:
        bridge.kill()


def newest(server, topic, last):
    """Wait until the last of a row of commands is there; all values that came before it."""
    values = []

    def came():
        told = server.take().get(topic)
        values.extend([] if told is None else [float(told["data"][0])])
        return values and values[-1] == last

    wait_until(came, f"{last} on {topic}")
    return values


def test_pictures_come_and_commands_go_through_it(server, bridges, start, patient):
    bridge = bridges()
    io = start(RosbridgeRobot(patient, f"ws://127.0.0.1:{bridge.port}", timing=Timing(silence_s=3.0)))
    hear(io, server, patient)
    for name in patient.cameras:
        np.testing.assert_array_equal(io.latest().images[name].pixels, PICTURE)
    np.testing.assert_allclose(io.latest().joints[-1].positions, patient.tool.posture, rtol=1e-15)
    assert io.simulated is False
    for k in range(20):
        assert send(io, np.full(7, k / 10), opening=0.02)
        wait_until(io._all_said.is_set, "the writing")
    came = newest(server, COMMANDS, 1.9)
    assert came == sorted(came)


def heard_by(client, tell):
    """The first frame; the server may have missed what was told before it knew of the publisher."""
    for _ in range(200):
        tell()
        with suppress(TimeoutError):
            return client.recv(timeout=0.1)
    raise AssertionError("nothing came")


@pytest.mark.full
def test_a_picture_in_json_is_the_same(server, bridges, patient):
    bridge = bridges()
    with connect(f"ws://127.0.0.1:{bridge.port}", max_size=None) as client:
        client.send(wire.subscribe(FRONT, "sensor_msgs/msg/CompressedImage", cbor=False))
        frame = heard_by(client, lambda: tell_all(server, patient))
    assert isinstance(frame, str)
    seen = codecs.picture(wire.parse(frame)["msg"], patient.cameras["front"])
    np.testing.assert_array_equal(seen, PICTURE)


@pytest.mark.full
def test_after_a_restart_nothing_is_sent_that_was_meant_for_before(server, bridges, start, patient):
    first = bridges()
    timing = Timing(first_pause_s=0.05, longest_pause_s=0.2, silence_s=3.0)
    io = start(RosbridgeRobot(patient, f"ws://127.0.0.1:{first.port}", timing=timing))
    hear(io, server, patient)
    assert send(io, np.full(7, 0.1))
    newest(server, COMMANDS, 0.1)
    first.kill()
    wait_until(lambda: not io.status().connected, "the loss")
    for k in range(60):
        assert not send(io, np.full(7, 1 + k / 100))
    bridges(first.port)
    wait_until(lambda: io.epoch == 2, "the new connection")
    hear(io, server, patient)
    wait_until(lambda: send(io, np.full(7, 0.2)) and COMMANDS in (heard := server.take()) and check(heard), "the new")
    assert io.status().counts["commands dropped"] >= 60


@pytest.mark.full
def test_a_half_open_line_is_given_up_and_nothing_of_the_silence_is_sent_later(server, bridges, start, patient):
    cable = Cable(bridges().port)
    timing = Timing(ping_s=0.5, close_s=0.2, first_pause_s=0.05, longest_pause_s=0.2, silence_s=3.0)
    io = start(RosbridgeRobot(patient, f"ws://127.0.0.1:{cable.port}", timing=timing))
    try:
        hear(io, server, patient)
        assert send(io, np.full(7, 0.1))
        newest(server, COMMANDS, 0.1)
        cable.freeze()
        wait_until(lambda: not io.status().connected, "the end of the connection")
        for k in range(60):
            assert not send(io, np.full(7, 1 + k / 100))
        cable.thaw()
        wait_until(lambda: io.epoch >= 2, "the new connection")
        assert not send(io, np.full(7, 0.5), epoch=1)
        hear(io, server, patient)
        assert server.take() == {}
        wait_until(
            lambda: send(io, np.full(7, 0.2)) and COMMANDS in (heard := server.take()) and check(heard), "the new"
        )
    finally:
        cable.close()


def check(heard):
    np.testing.assert_allclose(heard[COMMANDS]["data"], 0.2)
    return True


@pytest.mark.full
@pytest.mark.parametrize(
    "content",
    ['{"data": [NaN]}', '{"data": ["a"]}', '{"data": [1], "speed": 3}', '{"data": [1]', '{"data": {}}'],
)
def test_a_bad_message_is_answered_and_reaches_nobody(server, bridges, content):
    bridge = bridges()
    with connect(f"ws://127.0.0.1:{bridge.port}") as client:
        client.send(wire.advertise(GRIPPER, POSITION))
        client.send('{"op": "publish", "topic": "%s", "msg": %s}' % (GRIPPER, content))  # noqa: UP031
        assert wire.parse(client.recv(timeout=20))["op"] == "status"
    assert server.take() == {}
