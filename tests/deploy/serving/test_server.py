"""One server, as robots meet it: what it takes, what it answers, what it says when something is wrong."""

import asyncio
import socket
from contextlib import suppress

import numpy as np
import pytest
from robots import seen_by
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from moe_robot.deploy.client import RemoteError, RemotePolicy
from moe_robot.deploy.serving.wire import pack, unpack
from moe_robot.types import Observation


@pytest.fixture
def robot(server):
    with RemotePolicy(server.address, answer_s=60) as policy:
        yield policy


def test_the_greeting_tells_what_is_served(robot, mirror):
    assert robot.features.action_names == mirror.ACTION_NAMES
    assert robot.metadata["action_horizon"] == 4
    assert robot.metadata["execute"] == 3
    assert robot.metadata["observation_keys"]["observation/image"] == "observation.images.front"
    assert len(robot.metadata["checkpoint_sha256"]) == 64


@pytest.mark.parametrize("openpi", [False, True])
def test_a_plan_answers_the_observation_in_either_kind_of_keys(robot, mirror, openpi):
    seen = seen_by(3, openpi=openpi)
    picture, state, task = seen.values()
    answer = robot.infer(seen)
    np.testing.assert_allclose(answer["actions"], mirror.expected(state, picture, task), rtol=1e-6)
    assert answer["server_timing"]["batch"] == 1
    assert answer["server_timing"]["infer_ms"] >= 0
    assert robot.infer(seen)["server_timing"]["prev_total_ms"] > 0


def test_the_client_is_a_policy_that_plans_ahead(robot, mirror):
    picture, state, task = seen_by(5).values()
    observation = Observation({"front": picture}, state, task)
    plan = mirror.expected(state, picture, task)
    np.testing.assert_allclose(robot.action_chunk(observation), plan, rtol=1e-6)
    actions = [robot.select_action(observation) for _ in range(4)]
    np.testing.assert_allclose(actions, plan[[0, 1, 2, 0]], rtol=1e-6)
    assert robot.inference_count == 3
    robot.select_action(observation)
    robot.reset()
    np.testing.assert_allclose(robot.select_action(observation), plan[0], rtol=1e-6)


def test_numbers_of_other_types_and_lists_are_states_too(robot):
    seen = seen_by(1) | {"observation.state": [1, 2.5, np.float64(3)]}
    assert robot.infer(seen)["actions"][0, 1] == 2.5


WRONG = [
    ({"observation.state": ...}, "lacks 'observation.state'"),
    ({"observation.images.front": ...}, "lacks 'observation.images.front'"),
    ({"task": ...}, "lacks the instruction"),
    ({"task": 5}, "a int, expected a string"),
    ({"task": "two\nlines"}, "cannot be printed"),
    ({"task": "x" * 501}, "has 501 characters"),
    ({"observation.state": np.zeros(4)}, "expected (3,) numbers: x, y, gripper.pos"),
    ({"observation.state": np.array([0, np.nan, 0])}, "not finite (y)"),
    ({"observation.state": "abc"}, "a str, expected (3,) numbers"),
    ({"observation.images.front": np.zeros((4, 4, 3), np.uint8)}, "uint8 (4, 4, 3), expected uint8 (8, 6, 3)"),
    ({"observation.images.front": np.zeros((8, 6, 3), np.float32)}, "float32 (8, 6, 3), expected uint8"),
    ({"observation.images.wrist": np.zeros((8, 6, 3), np.uint8)}, "'observation.images.wrist', which nobody reads"),
    ({"prompt": "go"}, "has 'task' twice, as 'task' and as 'prompt'"),
    ({"reset": "yes"}, "'reset' is a str"),
    ({"task": "fail"}, "ValueError: this robot asks too much"),
    ({"task": "nothing"}, "not finite"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_wrong_with_an_observation_is_said_in_one_line_and_the_connection_ends(server, change, said):
    seen = {key: value for key, value in (seen_by(1) | change).items() if value is not ...}
    with connect(server.address, compression=None, proxy=None) as connection:
        connection.recv()
        connection.send(pack(seen))
        line = connection.recv(timeout=60)
        assert isinstance(line, str)
        assert said in line
        assert "\n" not in line
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=60)


def test_after_a_refusal_the_client_asks_again_on_a_new_connection(robot):
    with pytest.raises(RemoteError, match="which nobody reads"):
        robot.infer({"camera": 1})
    assert robot.infer(seen_by(1))["actions"].shape == (4, 4)


def test_a_text_frame_is_refused(server):
    with connect(server.address, proxy=None) as connection:
        connection.recv()
        connection.send("hello")
        assert "expected a binary one" in connection.recv(timeout=60)


def test_a_robot_that_wants_single_actions_gets_them_and_the_server_keeps_its_place(server, mirror):
    with RemotePolicy(server.address + "/step", answer_s=60) as robot:
        picture, state, task = seen_by(2).values()
        plan = mirror.expected(state, picture, task)
        answers = [robot.infer(seen_by(2)) for _ in range(2)]
        np.testing.assert_allclose([answer["actions"] for answer in answers], plan[:2], rtol=1e-6)
        later = seen_by(2, step=1) | {"task": task}  # the plan goes on, whatever is seen
        np.testing.assert_allclose(robot.infer(later)["actions"], plan[2], rtol=1e-6)
        assert [robot.infer(later)["step"] for _ in range(4)] == [0, 1, 2, 0]
        assert robot.infer(later | {"reset": True})["step"] == 0
        assert robot.infer(later)["step"] == 1
        assert robot.infer(later | {"task": "something else"})["step"] == 0


def test_pages_in_a_browser_are_turned_away(server):
    with pytest.raises(InvalidStatus, match="403"):
        connect(server.address, origin="http://evil.example", proxy=None)


def test_health_and_metrics_are_plain_requests(server, robot):
    before = server.metric('requests_total{outcome="ok"}')
    robot.infer(seen_by(1))
    assert server.get("/healthz") == (200, "OK\n")
    assert server.metric('requests_total{outcome="ok"}') == before + 1
    assert server.metric("ready") == 1
    assert server.metric('batch_size_bucket{le="+Inf"}') == server.metric("batch_size_count") > 0
    assert server.metric('expert_share{expert="vision.0",layer="0"}') == 0.75
    assert server.get("/other")[0] == 404


def test_robots_that_ask_at_once_share_a_pass_and_one_that_fails_spoils_only_its_own(server, mirror):
    async def ask(robot: int, change: dict):
        async with connect_async(server.address, compression=None, proxy=None) as connection:
            await connection.recv()
            await ready.wait()
            await connection.send(pack(seen_by(robot) | change))
            return await connection.recv()

    async def all_at_once():
        asked = [asyncio.ensure_future(ask(i, {"task": "fail"} if i == 2 else {})) for i in range(6)]
        await asyncio.sleep(0.5)
        ready.set()
        return await asyncio.gather(*asked)

    ready = asyncio.Event()
    answers = asyncio.run(all_at_once())
    assert "asks too much" in answers.pop(2)
    for robot, answer in zip((0, 1, 3, 4, 5), answers, strict=True):
        picture, state, task = seen_by(robot).values()
        np.testing.assert_allclose(unpack(answer)["actions"], mirror.expected(state, picture, task), rtol=1e-6)
    assert max(unpack(answer)["server_timing"]["batch"] for answer in answers) > 1


def test_slow_and_rude_clients_keep_nobody_waiting(server, robot):
    rude = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    try:
        for i, line in enumerate(rude):
            line.send(b"GET / HTTP/1.1\r\n" if i % 2 else bytes(range(256)))  # never goes on
        with connect(server.address, proxy=None, close_timeout=0.1) as flood:
            flood.recv()
            for i in range(200):  # and reads no answer
                flood.send(pack(seen_by(i)))
            with connect(server.address, proxy=None, close_timeout=0.1) as trickle:
                trickle.recv()
                trickle.socket.send(
                    b"\x82\xff\x00\x00\x00\x00\x00\x20\x00\x00abcd"
                )  # the head of 2 MiB that never come
                for i in range(20):
                    assert robot.infer(seen_by(i))["actions"][0, 0] == i
    finally:
        for line in rude:
            line.close()


def test_a_frame_that_is_too_large_ends_its_connection_and_no_other(server, robot):
    with connect(server.address, proxy=None) as connection:
        connection.recv()
        with suppress(ConnectionClosed):  # it may end while this one still sends
            connection.send(bytes(5 * 2**20))
        with pytest.raises(ConnectionClosed, match="1009"):
            connection.recv(timeout=60)
    assert robot.infer(seen_by(1))["actions"].shape == (4, 4)
