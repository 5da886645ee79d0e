"""Recordings: what is in them, by readers of others; and what becomes of them when the disk or the program fails."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from bags import TASK, Prompt, Q
from bridge_server import wait_until
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader

from moe_robot.deploy import recorder as writing
from moe_robot.deploy import recording
from moe_robot.deploy.backends.fake import FakeRobot
from moe_robot.deploy.cdr import Writer, plain
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.loop import ControlLoop
from moe_robot.deploy.mcap_file import McapFile
from moe_robot.deploy.recorded import Tap
from moe_robot.deploy.recording import Recorder
from moe_robot.deploy.robot_io import JointCommand
from moe_robot.types import UserError


def contents(path):
    """Topic -> [(nanoseconds, decoded message)] as the MCAP library and its ROS 2 decoder read them."""
    found = {}
    with path.open("rb") as file:
        for _, channel, message, decoded in make_reader(file, True, [DecoderFactory()]).iter_decoded_messages():
            found.setdefault(channel.topic, []).append((message.log_time, decoded))
    return found


def while_written(path, tries=50):
    """The same of a file that grows: a reader that comes in the middle of a write sees half of it, and looks again."""
    for _ in range(tries):
        try:
            return contents(path)
        except Exception as error:  # whatever a reader makes of half a record
            refused = error
            time.sleep(0.01)
    raise refused


def by_rosbags(path):
    """The same as ``rosbags`` reads them, as plain data."""
    found = {}
    with AnyReader([path]) as bag:
        for connection, at, data in bag.messages():
            found.setdefault(connection.topic, []).append((at, plain(bag.deserialize(data, connection.msgtype))))
    return found


@pytest.fixture
def record(pitstop, tmp_path):
    """Records a fake robot that a policy moves for a second, in a dry run and live; the path, the robot, the result."""

    def run(contract=pitstop, seconds=1.0, live=True):
        contract = replace(contract, state=tuple(name for name in contract.state if not name.endswith(".vel")))
        path, said = tmp_path / "run.mcap", []
        recorder = Recorder(path, contract, {"checkpoint": "runs/demo"}, said.append)
        robot = FakeRobot(contract, Q)
        guard = GuardedRobot(robot, contract, recorder.decided)
        loop = ControlLoop(guard, contract, Prompt(), TASK, None)
        robot.advance(0.5)
        recorder.start(robot.now, TASK)
        guard.sense()
        guard.enable(live)
        end = robot.now() + seconds
        while robot.now() < end - 1e-9:
            robot.advance(contract.period_s)
            guard.beat()
            recorder.step(loop.step())
        guard.trip("operator", "stop was pressed")
        recorded = recorder.stop()
        assert recorded.complete, said
        return path, robot, recorded

    return run


def test_a_recording_holds_what_was_sensed_decided_and_sent(record, pitstop):
    path, robot, recorded = record()
    found = contents(path)
    assert recorded.messages == sum(map(len, found.values()))
    assert {topic: len(entries) for topic, entries in found.items() if topic.startswith(("/front", "/wrist"))} == {
        "/front/image_raw/compressed": 10, "/wrist/image_raw/compressed": 10,
    }  # fmt: skip
    assert len(found["/joint_states"]) >= 50  # all of them, although the loop runs at 10 Hz
    ((_, text),) = found["/moe_robot/instruction"]
    assert text.data == TASK
    sent = [entry.data for _, entry in found["/moe_robot/sent/forward_position_controller/commands"]]
    np.testing.assert_array_equal(sent, [gated.command.positions[0] for gated in robot.sent])
    action = found["/moe_robot/action"][0][1]
    assert dict(zip(action.name, action.position, strict=True)) == pytest.approx(
        {"hand.dx": 0.05, "hand.dy": 0, "hand.dz": 0, "hand.dyaw": 0, "gripper": 1}
    )
    picture = found["/front/image_raw/compressed"][-1][1]
    pixels = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(pixels[:, :, ::-1], robot.latest().images["front"].pixels)
    report = found["/diagnostics"][-1][1].status[0]
    assert report.level == 2
    assert "operator: stop was pressed" in report.message
    assert {pair.key: pair.value for pair in report.values}["command"] == "hold"


def test_two_readers_of_others_agree_on_it(record):
    path, _, _ = record()
    theirs, ours = contents(path), by_rosbags(path)
    assert {topic: [at for at, _ in entries] for topic, entries in theirs.items()} == {
        topic: [at for at, _ in entries] for topic, entries in ours.items()
    }
    for (_, a), (_, b) in zip(theirs["/joint_states"], ours["/joint_states"], strict=True):
        assert list(a.position) == b["position"].tolist()
        assert (a.header.stamp.sec, a.header.stamp.nanosec) == tuple(b["header"]["stamp"].values())


def test_commands_of_a_dry_run_are_not_recorded_as_sent_and_none_stands_under_the_topic_that_the_robot_obeys(record):
    path, _, _ = record(live=False)
    topics = set(contents(path))
    assert "/moe_robot/dry_run/forward_position_controller/commands" in topics
    assert not any(topic.startswith(("/moe_robot/sent", "/forward_position", "/gripper")) for topic in topics)


def test_a_chunk_is_recorded_with_all_its_points(chunks):
    robot, tap, entries = FakeRobot(chunks, Q), Tap(chunks, 5.0), []
    robot.advance(1.0)
    guard = GuardedRobot(robot, chunks, lambda decision, now: entries.extend(tap.decision(decision, now)))
    guard.sense()
    guard.enable(live=True)
    guard.step(JointCommand(np.tile(Q, (3, 1)), 0.04, 1.0))
    sent = next(entry for entry in entries if entry.topic == "/moe_robot/sent/arm/joint_trajectory")
    writer = Writer()
    read = writer._store.deserialize_cdr(writer.cdr(sent.message, sent.kind), sent.kind)
    assert [point.positions.tolist() for point in read.points] == [Q.tolist()] * 3
    assert read.joint_names == list(chunks.topic_names)


def test_raw_pictures_are_recorded_as_jpeg(pitstop, tmp_path):
    camera = replace(pitstop.cameras["front"], type="sensor_msgs/msg/Image", topic="/front/image_raw")
    contract = replace(pitstop, cameras={"front": camera})
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[:, 48:] = (250, 20, 60)
    robot = FakeRobot(contract, Q)
    stamp = {"sec": 1_700_000_000, "nanosec": 0}
    raw = {
        "header": {"stamp": stamp},
        "height": 96,
        "width": 96,
        "step": 288,
        "encoding": "rgb8",
        "data": pixels.tobytes(),
    }
    robot.receive("/front/image_raw", raw)
    recorder = Recorder(tmp_path / "raw.mcap", contract, {}, print)
    guard = GuardedRobot(robot, contract, recorder.decided)
    recorder.start(robot.now, TASK)
    recorder.step(ControlLoop(guard, contract, Prompt(), TASK, None).step())
    assert recorder.stop().complete
    ((_, picture),) = contents(tmp_path / "raw.mcap")["/front/image_raw/compressed"]
    decoded = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(decoded.astype(int) - pixels)[:, [10, 80]].max() < 10


KILLED = """
import sys, time
sys.path[:0] = {paths}
import numpy as np
from dataclasses import replace
from pathlib import Path
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.backends.fake import FakeRobot
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.loop import ControlLoop
from moe_robot.deploy.recording import Recorder
from bags import Prompt, Q, TASK

def main():
    contract = load_contract("pitstop")
    contract = replace(contract, state=tuple(n for n in contract.state if not n.endswith(".vel")))
    recorder = Recorder(Path({path!r}), contract, {{}}, print)
    robot = FakeRobot(contract, Q)
    guard = GuardedRobot(robot, contract, recorder.decided)
    loop = ControlLoop(guard, contract, Prompt(), TASK, None)
    recorder.start(robot.now, TASK)
    print(recorder._process.pid, flush=True)
    while True:
        robot.advance(0.1)
        recorder.step(loop.step())
        time.sleep(0.02)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("victims", ["the program", "both processes"])
def test_a_recording_that_was_killed_is_whole_up_to_the_last_second(tmp_path, victims):
    path = tmp_path / "killed.mcap"
    script = tmp_path / "record.py"
    here = Path(__file__).parent
    script.write_text(KILLED.format(paths=[str(here / "support")], path=str(path)))
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        writer = int(program.stdout.readline())
        wait_until(lambda: len(while_written(path).get("/moe_robot/action", ())) > 10, "some recording", 60.0)
        before = while_written(path)
        if victims == "both processes":
            os.kill(writer, signal.SIGKILL)
    finally:
        program.kill()
        program.wait()
    wait_until(lambda: not Path(f"/proc/{writer}").exists() or _is_zombie(writer), "the end of the writer")
    after, ours = contents(path), by_rosbags(path)
    assert {topic: len(entries) for topic, entries in after.items()} == {t: len(entries) for t, entries in ours.items()}
    assert writing.FLUSH_S <= 1.0
    for topic, entries in before.items():
        assert [at for at, _ in after[topic]][: len(entries)] == [at for at, _ in entries]


def _is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_file_is_whole_after_every_flush(tmp_path):
    path, writer = tmp_path / "f.mcap", Writer()
    file = McapFile(path, {"robot": "a"})
    assert contents(path) == {}
    kind = "std_msgs/msg/String"
    channel = file.add_channel("/said", kind, writer.definition(kind))
    for i in range(5):
        file.add(channel, writer.cdr({"data": f"word {i}"}, kind), 10**9 * (5 - i), i)
        if i == 3:
            other = file.add_channel("/other", kind, writer.definition(kind))
            file.add(other, writer.cdr({}, kind), 7, 7)
        file.flush()
        assert [m.data for _, m in contents(path)["/said"]] == [f"word {j}" for j in range(i, -1, -1)]
        assert len(by_rosbags(path)["/said"]) == i + 1
    file.close()
    file.close()
    with path.open("rb") as opened:
        reader = make_reader(opened)
        assert [entry.metadata for entry in reader.iter_metadata()] == [{"robot": "a"}]
        assert reader.get_summary().statistics.message_count == 6


FULL_DISK = """
import resource, sys
from pathlib import Path
from moe_robot.deploy.mcap_file import McapFile
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
file = McapFile(Path(sys.argv[1]), {})
channel = file.add_channel("/said", "std_msgs/msg/String", "string data\\n")
for i in range(100):
    file.add(channel, b"\\0\\1\\0\\0" + (1000).to_bytes(4, "little") + b"x" * 999 + b"\\0", i, i)
    file.flush()
"""


def test_a_full_disk_leaves_the_file_as_it_was_before(tmp_path):
    path = tmp_path / "full.mcap"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert 5 < len(contents(path)["/said"]) < 20


def test_a_disk_that_stands_still_delays_nothing_and_what_is_lost_is_counted_and_told(pitstop, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "ENDING_S", 0.2)
    said, path = [], tmp_path / "slow.mcap"
    recorder = Recorder(path, pitstop, {}, said.append)
    robot = FakeRobot(pitstop, Q)
    guard = GuardedRobot(robot, pitstop, recorder.decided)
    recorder.start(robot.now, TASK)
    os.kill(recorder._process.pid, signal.SIGSTOP)
    robot.advance(0.5)
    guard.sense()
    for _ in range(3000):  # far more than the pipe and the queue hold
        guard.step(None)
    recorded = recorder.stop()
    assert recorded.dropped > 1000
    assert not recorded.complete
    assert len(said) == 1
    assert "NO LONGER COMPLETE" in said[0]
    assert str(recorded.dropped) in str(recorded)
    contents(path)


def test_a_writer_that_dies_is_told_and_delays_nothing(pitstop, tmp_path):
    said = []
    recorder = Recorder(tmp_path / "dead.mcap", pitstop, {}, said.append)
    robot = FakeRobot(pitstop, Q)
    guard = GuardedRobot(robot, pitstop, recorder.decided)
    recorder.start(robot.now, TASK)
    recorder._process.kill()
    wait_until(lambda: guard.step(None) and said, "the complaint")
    assert "the process that writes it ended" in said[0]
    recorded = recorder.stop()
    assert recorded.dropped
    assert recorded.trouble == "the process that writes it ended"


def test_what_a_stranger_sent_that_is_no_message_is_counted_and_ends_nothing(pitstop, tmp_path):
    recorder = Recorder(tmp_path / "odd.mcap", pitstop, {}, print)
    recorder.start(lambda: 0.0, "a\0b \ud800" + "\x07" * 10_000)
    odd = {"header": {"stamp": {"sec": 2**70}}, "name": 5, "position": "x"}
    recorder._put([recording.Entry("/joint_states", "sensor_msgs/msg/JointState", odd, 0.0)])
    recorder._put([recording.Entry("/front", "sensor_msgs/msg/CompressedImage", {"data": "no base64"}, 0.0)])
    recorder._put([recording.Entry("/ok", "std_msgs/msg/String", {"data": "fine"}, 0.0)])
    recorded = recorder.stop()
    assert recorded.refused >= 2
    assert contents(tmp_path / "odd.mcap")["/ok"][0][1].data == "fine"


def test_a_place_that_cannot_be_written_is_refused_before_anything_moves(pitstop, tmp_path):
    (tmp_path / "there.mcap").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for path, wrong in (("there.mcap", "there already"), ("run.bag", "ends with .mcap")):
        with pytest.raises(UserError, match=wrong):
            Recorder(tmp_path / path, pitstop, {}, print)
    recorder = Recorder(tmp_path / "file" / "run.mcap", pitstop, {}, print)
    with pytest.raises(UserError, match="cannot be written"):
        recorder.start(lambda: 0.0, TASK)
    recorder.stop()
