"""Recordings as robots: ours and those that other tools write, in their own time."""

from dataclasses import replace

import pytest
from bags import SECONDS, write

from moe_robot.deploy.backends.bag import BagRobot
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.robot_io import JointCommand
from moe_robot.deploy.sync import match
from moe_robot.types import UserError


class Clock:
    def __init__(self):
        self.time = 50.0

    def __call__(self):
        return self.time


@pytest.fixture
def play(tmp_path):
    opened = []

    def open_bag(contract, path):
        clock = Clock()
        opened.append(BagRobot(contract, path, clock))
        return opened[-1], clock

    yield open_bag
    for robot in opened:
        robot.stop()


@pytest.mark.parametrize("form", ["mcap", "sqlite", "sqlite zstd", "ros 1"])
def test_a_recording_of_another_tool_comes_again_in_its_own_time(pitstop, tmp_path, play, form):
    robot, clock = play(pitstop, write(tmp_path / ("run.bag" if form == "ros 1" else "bag"), pitstop, form))
    assert robot.latest().joints == ()
    robot.start()
    for at in (0.5, 1.0, 1.5):
        clock.time = 50.0 + at
        snapshot = robot.latest()
        newest = snapshot.joints[-1]
        # the recording begins with the first message, which came 0.01 s after it was stamped
        assert newest.positions[0] == pytest.approx(0.1 * (newest.sensed - 50.0 + 0.01), abs=1e-6)
        assert newest.received - newest.sensed == pytest.approx(0.01, abs=1e-5)
        assert at - 0.021 <= newest.received - 50.0 <= at
        picture = snapshot.images["front"]
        assert picture.pixels[0, 0, 0] == round((picture.sensed - 50.0 + 0.01) * 50)
    assert not robot.over
    clock.time = 60.0
    robot.latest()
    assert robot.over
    assert not robot.status().connected
    assert robot.status().counts["received"] == SECONDS * (50 + 2 * 10)


def test_the_gate_judges_a_recording_as_it_would_a_robot_and_nothing_is_sent(pitstop, tmp_path, play):
    robot, clock = play(pitstop, write(tmp_path / "bag", pitstop, "mcap"))
    guard = GuardedRobot(robot, pitstop)
    robot.start()
    clock.time = 51.0
    assert guard.enable(live=True) is None
    guard.sense()
    assert guard.step(JointCommand(robot.latest().joints[-1].positions[None], None, clock.time)).send is not None
    assert robot.status().counts["commands dropped"] == 1
    clock.time = 55.0  # the recording ended at 52
    guard.beat()
    guard.sense()
    assert "freshness" in guard.step(None).failure.message
    assert guard.state is State.HELD


def test_pictures_that_were_raw_are_found_compressed(pitstop, tmp_path, play):
    cameras = {
        name: replace(camera, type="sensor_msgs/msg/Image", topic=camera.topic.removesuffix("/compressed"))
        for name, camera in pitstop.cameras.items()
    }
    robot, clock = play(replace(pitstop, cameras=cameras), write(tmp_path / "bag", pitstop, "mcap"))
    robot.start()
    clock.time = 51.0
    assert set(match(robot.latest()).images) == {"front", "wrist"}


def test_a_recording_that_does_not_fit_is_refused_in_one_line(pitstop, tmp_path):
    path = write(tmp_path / "bag", pitstop, "mcap")
    moved = replace(pitstop, joint_states=replace(pitstop.joint_states, topic="/arm/joint_states"))
    with pytest.raises(UserError, match=r"has no joint states: .*'/arm/joint_states'.*did you mean /joint_states"):
        BagRobot(moved, path)
    raw = replace(pitstop.cameras["front"], type="sensor_msgs/msg/Image")
    with pytest.raises(UserError, match="is a sensor_msgs/msg/CompressedImage, expected sensor_msgs/msg/Image"):
        BagRobot(replace(pitstop, cameras={"front": raw}), path)
    with pytest.raises(UserError, match="there is no recording"):
        BagRobot(pitstop, tmp_path / "nothing.mcap")
    (tmp_path / "cut.mcap").write_bytes((path / "bag.mcap").read_bytes()[:20_000])
    (tmp_path / "empty.mcap").write_bytes(b"")
    (tmp_path / "text.db3").write_text("no data base")
    (tmp_path / "folder").mkdir()
    for name in ("cut.mcap", "empty.mcap", "text.db3", "folder"):
        with pytest.raises(UserError, match=r"cannot be read|there is no recording"):
            BagRobot(pitstop, tmp_path / name)
