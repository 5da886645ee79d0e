"""How connections, servers and robots end: drained, killed, cut off; and what the others notice of it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from robots import gone, seen_by, wait_until
from websockets.sync.client import connect

from moe_robot.deploy.client import ConnectionLost, RemoteError, RemotePolicy
from moe_robot.deploy.serving.wire import pack, unpack

KILLS = 5
ROBOT = """
import sys
from moe_robot.deploy.client import RemotePolicy
from robots import seen_by
with RemotePolicy(sys.argv[1], answer_s=60) as robot:
    while True:
        robot.infer(seen_by(1))
        print("answered", flush=True)
"""


def test_a_server_that_is_told_to_end_answers_what_was_asked_and_ends_well(serve, write, tmp_path):
    served = serve(write(tmp_path / "slow", delay_s=1.0))
    answers, idle = [], RemotePolicy(served.address, answer_s=60)
    asked = sum(len(pack(seen_by(i))) for i in range(4))

    def ask(i: int) -> None:
        with connect(served.address, proxy=None) as connection:
            connection.recv()
            connection.send(pack(seen_by(i)))
            answers.append(unpack(connection.recv(timeout=60))["actions"][0, 0])

    asking = [threading.Thread(target=ask, args=[i]) for i in range(4)]
    for thread in asking:
        thread.start()
    wait_until(lambda: served.metric("received_bytes_total") >= asked, "the questions")
    served.command.process.send_signal(signal.SIGTERM)
    for thread in asking:
        thread.join()
    assert sorted(answers) == [0, 1, 2, 3]
    assert served.command.wait() == 0
    with pytest.raises(RemoteError, match="lost"):
        idle.infer(seen_by(0))
    with pytest.raises(RemoteError, match="start moe-robot serve"):
        idle.infer(seen_by(0))


def test_ctrl_c_ends_it_in_the_same_way_and_is_told(serve, checkpoint):
    served = serve(checkpoint)
    policy = served.policy_pid()
    assert served.command.end(signal.SIGINT) == 130
    assert any("interrupted; what was asked is answered" in line for line in served.command.lines)
    wait_until(lambda: gone(policy), "the end of the policy")


def _ask_for_ever(robot: RemotePolicy) -> None:
    while True:
        robot.infer(seen_by(1))


def _kill_servers(serve, checkpoint, times: int) -> None:
    """Each time another server on the same port, killed while a robot asks: one that waits goes on, one does not."""
    random.seed(0)
    served = serve(checkpoint)
    with RemotePolicy(served.address, answer_s=60, patience_s=120) as patient:
        for _ in range(times):
            with RemotePolicy(served.address, answer_s=60) as brisk:
                killer = threading.Timer(random.uniform(0, 0.3), os.kill, (served.pid, signal.SIGKILL))
                policy = served.policy_pid()
                killer.start()
                with pytest.raises(ConnectionLost) as lost:
                    _ask_for_ever(brisk)
            assert len(str(lost.value).splitlines()) == 1
            served.command.wait()
            wait_until(lambda policy=policy: gone(policy), "the end of the killed server's policy")
            served = serve(checkpoint, "--port", str(served.port))
            assert patient.infer(seen_by(7))["actions"][0, 0] == 7


def _kill_robots(served, times: int) -> None:
    random.seed(1)
    path = os.pathsep.join([*sys.path])
    for _ in range(times):
        robot = subprocess.Popen(
            [sys.executable, "-c", ROBOT, served.address], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
        )
        assert robot.stdout is not None
        assert robot.stdout.readline() == b"answered\n"
        time.sleep(random.uniform(0, 0.2))
        robot.kill()
        robot.wait()
        robot.stdout.close()
        wait_until(lambda: served.metric("robots") == 0, "forgetting the dead robot")
        assert served.metric("queue") == 0
    with RemotePolicy(served.address, answer_s=60) as robot:
        assert robot.infer(seen_by(1))["actions"][0, 0] == 1


def test_a_killed_server_is_told_in_one_line_and_a_robot_with_patience_goes_on_with_the_next(serve, checkpoint):
    _kill_servers(serve, checkpoint, KILLS)


def test_a_killed_robot_is_forgotten(serve, checkpoint):
    _kill_robots(serve(checkpoint), KILLS)


@pytest.mark.full
def test_kills_at_length(serve, checkpoint):
    _kill_servers(serve, checkpoint, 50)
    _kill_robots(serve(checkpoint), 50)


def _damaged(rng: random.Random, good: bytes) -> bytes | str:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(2000))
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        return "text " * rng.randrange(50)
    frame = bytearray(good)
    for _ in range(rng.randint(1, 12)):
        frame[rng.randrange(80 if kind == 3 else len(frame))] = rng.randrange(256)  # 3: where the structure is
    return bytes(frame)


def _malform(served, frames: int) -> None:
    """Every frame is answered, by a plan where the damage hit only numbers, else by a line; nothing is left of it."""
    rng, good, resident = random.Random(2), pack(seen_by(1)), 0
    policy = served.policy_pid()
    for i in range(frames):
        with connect(served.address, proxy=None, compression=None) as connection:
            connection.recv()
            connection.send(_damaged(rng, good))
            answer = connection.recv(timeout=60)
            assert "actions" in unpack(answer) if isinstance(answer, bytes) else len(answer.splitlines()) == 1
        if i == frames // 3:
            resident = served.resident()
    grown = served.resident() - resident
    assert grown < 4 * 2**20, f"{grown} bytes"
    assert served.policy_pid() == policy
    assert served.metric("robots") == 0
    assert served.metric('requests_total{outcome="refused"}') > frames / 2


def test_malformed_frames_do_no_harm(serve, checkpoint):
    _malform(serve(checkpoint), 1000)


@pytest.mark.full
def test_malformed_frames_do_no_harm_at_length(serve, checkpoint):
    _malform(serve(checkpoint), 10_000)
