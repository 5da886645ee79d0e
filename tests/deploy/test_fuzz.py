"""Messages that nobody would send, thrown at a robot while a policy drives it."""

import math

import cbor2
import cv2
import numpy as np
import pytest

from moe_robot.deploy.backends import rosbridge_wire as wire
from moe_robot.deploy.backends.fake import WALL_OFFSET, FakeRobot, Fault
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.robot_io import JointCommand

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])
ODD = [
    None, True, -1, 0, 2**63, 10**30, 1e308, math.nan, math.inf, "", "x" * 500, "\x00\n", b"", b"\xff\xd8" * 9, [], {},
    [None] * 9, [[]], {"sec": 1}, {"stamp": {"sec": -5, "nanosec": 2**40}}, np.zeros(9), np.full(9, math.nan),
]  # fmt: skip


def _message(contract, topic, now, rng):
    """A good message of ``topic``."""
    stamp = now + WALL_OFFSET + rng.choice([0.01, -0.01, -5.0, 5.0], p=[0.6, 0.2, 0.1, 0.1])
    header = {"stamp": {"sec": int(stamp), "nanosec": int(stamp % 1 * 1e9)}, "frame_id": ""}
    if topic == contract.joint_states.topic:
        names = [*contract.topic_names, *contract.gripper.joints]
        return {"header": header, "name": names, "position": [*Q.tolist(), 0.04, 0.04], "velocity": [0.0] * 9}
    form = rng.choice([".png", ".jpg"])
    return {"header": header, "format": form, "data": cv2.imencode(form, np.zeros((96, 96, 3), np.uint8))[1].tobytes()}


def _spoilt(message, rng):
    """The message with an odd value somewhere in it."""
    spoilt = dict(message)
    key = rng.choice(list(message))
    value = message[key]
    if isinstance(value, dict) and rng.random() < 0.7:
        spoilt[key] = _spoilt(value, rng)
    elif isinstance(value, list | bytes) and len(value) and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        odd = bytes(rng.integers(0, 256, 3, np.uint8)) if isinstance(value, bytes) else [ODD[rng.integers(len(ODD))]]
        spoilt[key] = value[:at] + odd + value[at + int(rng.integers(3)) :]
    else:
        spoilt[key] = ODD[rng.integers(len(ODD))]
    return spoilt


def _as_sent(message, topic, rng):
    """The message after its way over the wire, on which bytes may be lost; None when it is refused there."""
    try:
        frame = bytearray(cbor2.dumps({"op": "publish", "topic": topic, "msg": message}, default=_array))
        if rng.random() < 0.2:
            at = int(rng.integers(len(frame)))
            frame[at : at + int(rng.integers(4))] = bytes(rng.integers(0, 256, int(rng.integers(4)), np.uint8))
        content = wire.parse(bytes(frame)).get("msg")
    except wire.BadFrame:
        return None
    return content if isinstance(content, dict) else None


def _array(encoder, value):
    encoder.encode(cbor2.CBORTag(86, value.astype("<f8").tobytes()))


def _silences(frames, rng):
    """Times of which the robot itself says nothing, so that only what is thrown at it comes: six, 1 s each."""
    begins = np.sort(rng.uniform(0.5, frames / 50 - 1.5, 6))
    return tuple(Fault("dropped", begin, begin + 1.0) for begin in begins)


def _oldest(sensed, now, contract):
    """By how much the oldest of the newest messages is over its allowed age, seconds; infinite for one that is not."""
    newest = {name: sensed.images.get(name) for name in contract.cameras} | {"": sensed.newest}
    limits = {name: camera.max_age_s for name, camera in contract.cameras.items()}
    limits[""] = contract.joint_states.max_age_s
    return max(now - part.sensed - limits[name] if part else math.inf for name, part in newest.items())


@pytest.mark.parametrize("frames", [1000, pytest.param(10_000, marks=pytest.mark.full)])
def test_no_message_breaks_anything_moves_the_arm_out_of_its_limits_or_keeps_it_going(pitstop, frames):
    rng = np.random.default_rng(frames)
    robot = FakeRobot(pitstop, Q, _silences(frames, rng))
    guard = GuardedRobot(robot, pitstop)
    topics = [pitstop.joint_states.topic, *(camera.topic for camera in pitstop.cameras.values())]
    lower, upper = np.array([joint.position for joint in pitstop.joints]).T
    box = np.array(pitstop.tool.workspace)
    held = passed = silenced = 0
    wrong_since, moved = None, False  # moved: commanded since it was enabled, so that there is something to stop
    for _ in range(frames // 5):
        robot.advance(pitstop.period_s)
        for topic in rng.choice(topics, 5):
            message = _as_sent(_spoilt(_message(pitstop, topic, robot.now(), rng), rng), topic, rng)
            if message is not None:
                robot.receive(topic, message)
        guard.beat()
        sensed = guard.sense()
        before, was = len(robot.sent), guard.state
        q = sensed.newest.positions if sensed.newest is not None else Q
        decision = guard.step(JointCommand(q[None] + rng.uniform(-0.02, 0.02, 7), None, robot.now()))
        for gated in robot.sent[before:]:
            sent = gated.command.positions[0]
            assert np.all((lower <= sent) & (sent <= upper))
            tool = pitstop.chain.forward(sent)[0]
            assert np.all((box[:, 0] <= tool) & (tool <= box[:, 1]))
            assert gated.at == robot.now()
            if not gated.hold:
                assert np.isfinite(sensed.newest.positions).all()
                assert _oldest(sensed, gated.at, pitstop) <= 0
        if _oldest(sensed, robot.now(), pitstop) > 0 or not np.isfinite(q).all():
            wrong_since = robot.now() if wrong_since is None else wrong_since
            assert was is not State.ENABLED or robot.now() - wrong_since <= 2 * pitstop.period_s
            assert guard.state is not State.ENABLED
            if was is State.ENABLED and moved:
                silenced += 1
                assert robot.sent[-1].hold
                assert len(robot.sent) == before + 1
        else:
            wrong_since = None
        passed += decision.passed is not None
        moved = guard.state is State.ENABLED and (moved or decision.passed is not None)
        if guard.state is not State.ENABLED:
            held += guard.enable(live=True) is None
    assert passed > frames // 50
    assert held > 3
    assert silenced > 3
    assert robot.status().counts["refused"] > frames // 5
