from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_robot.deploy.inbox import Inbox
from moe_robot.deploy.robot_io import Image, JointState, Snapshot
from moe_robot.deploy.stamps import StampClock
from moe_robot.deploy.sync import KEPT, JointHistory, match

PIXELS = np.zeros((2, 2, 3), np.uint8)
TIMES = st.floats(0, 100, allow_nan=False).map(lambda t: round(t, 3))


def state(at):
    return JointState(np.array([at]), None, None, at, at)


@given(st.lists(TIMES, max_size=150))
def test_whatever_the_order_of_arrival_the_history_is_in_order_and_holds_the_newest(times):
    history = JointHistory()
    for at in times:
        history.add(state(at))
    kept = [joint.sensed for joint in history.recent()]
    assert kept == sorted(set(times))[-KEPT:]


def test_a_joint_state_that_comes_twice_or_far_too_late_is_not_taken():
    history = JointHistory()
    assert history.add(state(1.0))
    assert not history.add(state(1.0))
    assert history.add(state(0.5))
    assert [joint.sensed for joint in history.recent()] == [0.5, 1.0]
    assert all(history.add(state(2.0 + i)) for i in range(KEPT))
    assert not history.add(state(1.5))


@given(st.lists(TIMES, min_size=1, max_size=40, unique=True), st.lists(TIMES, min_size=1, max_size=3))
def test_pictures_are_paired_with_the_joint_state_nearest_to_the_oldest_of_them(states, pictures):
    joints = tuple(state(at) for at in sorted(states))
    images = {str(i): Image(PIXELS, at, at) for i, at in enumerate(pictures)}
    sensed = match(Snapshot(images, joints, epoch=3))
    oldest = min(pictures)
    assert abs(sensed.joints.sensed - oldest) == min(abs(at - oldest) for at in states)
    assert (sensed.newest.sensed, sensed.epoch) == (max(states), 3)


def test_without_joint_states_or_pictures_nothing_is_made_up():
    assert match(Snapshot({"a": Image(PIXELS, 1, 1)})).newest is None
    alone = match(Snapshot({}, (state(1.0), state(2.0))))
    assert (alone.joints, dict(alone.images)) == (alone.newest, {})


def test_a_shared_clock_shows_how_slow_the_way_was_even_when_the_wall_clock_is_set():
    clock = StampClock(shared=True)
    assert clock.sensed(stamp=1000.0, received=50.0, wall=1004.8) == pytest.approx(45.2)
    assert clock.sensed(stamp=4600.0, received=60.0, wall=4600.1) == pytest.approx(59.9)  # set an hour ahead
    assert not clock.began_anew(5.0)
    assert clock.stamp(61.0, wall=4601.0) == 4601.0


@given(st.floats(0, 1e6), st.lists(st.floats(0, 0.5), min_size=1, max_size=30), st.sampled_from([0.9, 1.0, 1.0001]))
def test_a_clock_of_its_own_is_followed_by_its_quickest_messages(offset, delays, rate):
    clock = StampClock(shared=False)
    for i, delay in enumerate(delays):
        happened = 10.0 + 0.1 * i
        received = happened + delay
        sensed = clock.sensed(happened * rate - offset, received, wall=0.0)
        assert sensed <= received + 1e-6  # never from the future
        assert sensed >= received - 0.5 - 3.0 * abs(rate - 1) - 1e-6  # nor older than way and drift make it


def test_a_clock_of_its_own_that_is_set_back_begins_anew():
    clock = StampClock(shared=False)
    clock.sensed(500.0, 10.0, 0.0)
    assert not clock.began_anew(499.5)  # late
    assert clock.began_anew(3.0)
    clock.restart()
    assert clock.stamp(1.0, wall=0.0) == 0.0
    assert not clock.began_anew(3.0)
    assert clock.sensed(3.0, 11.0, 0.0) == 11.0


def test_a_restarted_simulation_begins_a_new_epoch_and_forgets_what_was_before(pitstop):
    inbox = Inbox(replace(pitstop, clock="robot"))
    names = [*pitstop.topic_names, *pitstop.gripper.joints]

    def message(sec):
        return {"header": {"stamp": {"sec": sec, "nanosec": 0}}, "name": names, "position": [0.0] * 9}

    for sec, received in ((500, 10.0), (501, 11.0), (3, 12.0)):
        inbox.take("/joint_states", message(sec), received, 0.0)
    snapshot = inbox.snapshot()
    assert (snapshot.epoch, len(snapshot.joints)) == (1, 1)
    assert "the robot's clock began anew" in inbox.status(True).trouble


def test_the_newest_picture_is_kept_whatever_comes_after_it_and_a_new_epoch_forgets_it(pitstop):
    inbox, camera = Inbox(pitstop), pitstop.cameras["front"]
    for value, sec in ((1, 10), (2, 12), (3, 11), (4, 12)):
        data = cv2.imencode(".png", np.full((96, 96, 3), value, np.uint8))[1].tobytes()
        message = {"header": {"stamp": {"sec": sec, "nanosec": 0}}, "format": "png", "data": data}
        inbox.take(camera.topic, message, received=20.0, wall=20.0)
        assert inbox.snapshot().images["front"].pixels.max() == min(value, 2)
    assert inbox.status(True).counts["repeated or late"] == 2
    inbox.begin_epoch()
    assert inbox.snapshot() == Snapshot({}, (), epoch=1)
