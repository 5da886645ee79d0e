from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_robot.deploy.decision import REMEDIES, State
from moe_robot.deploy.robot_io import Image, JointCommand, JointState, TwistCommand
from moe_robot.deploy.safety import SafetyGate
from moe_robot.deploy.safety_rules import JointRules
from moe_robot.deploy.sync import Sensed

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])  # in the middle of the workspace
NOW = 100.0
PIXELS = np.zeros((96, 96, 3), np.uint8)


def sensed(q=Q, at=NOW, joints_at=None, epoch=0, cameras=("front", "wrist"), **camera_times):
    """Everything sensed at the time ``at``, except what is given a time of its own."""
    state = JointState(np.array(q, float), None, 0.04, *[at if joints_at is None else joints_at] * 2)
    images = {name: Image(PIXELS, *[camera_times.get(name, at)] * 2) for name in cameras}
    return Sensed(images, state, state, epoch)


def move(change=0.0, opening=None, observed=NOW, q=Q):
    return JointCommand(np.array([q]) + np.asarray(change), opening, observed)


def enabled(contract, live=True, now=NOW):
    gate = SafetyGate(contract)
    assert gate.enable(sensed(at=now), now, live) is None
    return gate


def test_the_gate_begins_disabled_and_in_a_dry_run(pitstop):
    gate = SafetyGate(pitstop)
    assert (gate.state, gate.dry_run) == (State.DISABLED, True)
    decision = gate.check(move(), sensed(), NOW)
    assert (decision.send, decision.passed, decision.failure.rule) == (None, None, "enabled")
    assert "enable it when the robot may move" in decision.failure.message


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(pitstop):
    gate = enabled(pitstop, live=False)
    decision = gate.check(move(0.01), sensed(), NOW)
    assert decision.send is None
    assert decision.passed is not None
    assert gate.check(move(9.0), sensed(), NOW).send is None
    assert gate.state is State.HELD


def test_a_good_command_passes_as_it_is(pitstop):
    decision = enabled(pitstop).check(move(0.01, opening=0.08), sensed(), NOW)
    assert decision.failure is None
    np.testing.assert_array_equal(decision.send.command.positions, move(0.01).positions)
    assert decision.send.command.opening == 0.08


def bent(i, value):
    q = Q.copy()
    q[i] = value
    return q


@pytest.mark.parametrize(
    ("rule", "says", "command", "view"),
    [
        ("finite", "the command holds NaN or infinity", move(np.nan), {}),
        ("finite", "the command holds NaN or infinity", move(opening=np.inf), {}),
        ("finite", "measured joint positions or velocities hold NaN", move(), {"q": bent(2, np.nan)}),
        ("shape", "shape (1, 6), expected (K, 7)", JointCommand(np.zeros((1, 6)), None, NOW), {}),
        ("shape", "shape (7,), expected (K, 7)", JointCommand(np.zeros(7), None, NOW), {}),
        ("shape", "the chunk has 2 points", JointCommand(np.array([Q, Q]), None, NOW), {}),
        ("shape", "not made of numbers", JointCommand(np.array([["a"] * 7]), None, NOW), {}),
        ("shape", "not made of numbers", JointCommand(np.array([[10**400] * 7], dtype=object), None, NOW), {}),
        ("shape", "this is a twist", TwistCommand(np.zeros(6), None, NOW), {}),
        ("shape", "measured joint positions have shape (6,)", move(), {"q": Q[:6]}),
        ("joint limits", "joint4 would go to 0.0000 rad, allowed are -3.0718 to -0.0698", move(q=bent(3, 0.0)), {}),
        ("joint limits", "joint2 would go to -1.8000 rad, allowed are -1.7628 to 1.7628", move(q=bent(1, -1.8)), {}),
        ("joint limits", "gripper would open to 0.0900, allowed are 0 to 0.08", move(opening=0.09), {}),
        ("velocity", "joint1 would move 0.3000 rad in one step, allowed are 0.2500, from where it is measured to be",
         move(q=bent(0, 0.3)), {}),
        ("workspace", "hand.z would be", move(q=bent(1, 0.1), observed=NOW), {"q": bent(1, 0.15)}),
        ("freshness", "the newest joint state on /joint_states is 0.300 s old, allowed are 0.15 s", move(),
         {"joints_at": NOW - 0.3}),
        ("freshness", "picture of camera 'wrist' on /wrist/image_raw/compressed is 0.210 s old", move(),
         {"wrist": NOW - 0.21}),
        ("freshness", "is from 5.000 s in the future", move(), {"front": NOW + 5}),
        ("freshness", "no picture of camera 'wrist' has come", move(), {"cameras": ("front",)}),
        ("freshness", "the observation that the command answers is 1.100 s old", move(observed=NOW - 1.1), {}),
        ("freshness", "command answers is from 1.000 s in the future", move(observed=NOW + 1), {}),
        ("skew", "the joint state was sensed 0.180 s after camera 'front', allowed are 0.15 s", move(),
         {"front": NOW - 0.18, "wrist": NOW - 0.1}),
        ("epoch", "the connection or the robot's clock began anew", move(), {"epoch": 1}),
    ],
)  # fmt: skip
def test_a_broken_rule_holds_the_robot_at_once_and_is_named(pitstop, rule, says, command, view):
    if rule == "workspace":  # a box whose top the hand reaches
        height = pitstop.chain.forward(Q)[0][2]
        box = (*pitstop.tool.workspace[:2], (0.0, height + 0.001))
        pitstop = replace(pitstop, tool=replace(pitstop.tool, workspace=box, goals=None))
    gate = enabled(pitstop)
    decision = gate.check(command, sensed(**view), NOW)
    assert decision.failure.rule == rule
    assert says in decision.failure.message
    assert REMEDIES[rule] in decision.failure.message
    assert "\n" not in decision.failure.message
    assert (decision.passed, gate.state) == (None, State.HELD)


def test_a_step_is_judged_from_the_command_before(pitstop):
    gate = enabled(pitstop)
    assert gate.check(move(q=bent(0, -0.25)), sensed(), NOW).failure is None
    # The arm was pushed: each command is near where it is measured to be, but they are far from each other.
    pushed = bent(0, 0.25)
    failure = gate.check(move(q=bent(0, 0.45)), sensed(q=pushed), NOW).failure
    assert (
        "step: joint1 would move 0.7000 rad in one step, allowed are 0.6000, from the command before" in failure.message
    )


@pytest.mark.parametrize(("stamp", "receipt"), [(-0.3, 0.0), (0.0, -0.3)])
def test_what_came_late_and_what_came_long_ago_are_both_old(pitstop, stamp, receipt):
    view = sensed()
    newest = replace(view.newest, sensed=NOW + stamp, received=NOW + receipt)
    assert "is 0.300 s old" in enabled(pitstop).check(move(), replace(view, newest=newest), NOW).failure.message


def test_without_a_heartbeat_the_robot_is_held(pitstop):
    gate = enabled(pitstop)
    for later in (0.3, 0.6, 0.9):
        gate.beat(NOW + later)
        assert gate.check(move(observed=NOW + later), sensed(at=NOW + later), NOW + later).failure is None
    decision = gate.check(move(observed=NOW + 1.5), sensed(at=NOW + 1.5), NOW + 1.5)
    assert "heartbeat: the last was 0.600 s ago, allowed are 0.5 s" in decision.failure.message


def test_sensors_are_judged_also_when_the_policy_has_no_command(pitstop):
    gate = enabled(pitstop)
    assert gate.check(None, sensed(), NOW).failure is None
    assert gate.check(None, sensed(joints_at=NOW - 1), NOW).failure.rule == "freshness"


def test_a_hold_keeps_the_arm_where_it_is_measured_and_is_sent_once(pitstop):
    gate = enabled(pitstop)
    gate.check(move(0.02), sensed(), NOW)
    moved = Q + 0.01
    first, second = (gate.check(move(np.nan), sensed(q=moved), NOW) for _ in range(2))
    assert first.send.hold
    np.testing.assert_array_equal(first.send.command.positions, [moved])
    assert first.send.command.opening is None
    assert second.send is None
    assert second.failure == first.failure


def test_a_hold_without_a_fresh_measurement_inside_the_limits_keeps_to_the_last_command(pitstop):
    for view in ({"joints_at": NOW - 1}, {"q": bent(0, np.nan)}, {"q": bent(0, 3.0)}, {"joints_at": NOW + 1}):
        gate = enabled(pitstop)
        gate.check(move(0.02), sensed(), NOW)
        decision = gate.check(move(np.nan), sensed(**view), NOW)
        np.testing.assert_array_equal(decision.send.command.positions, move(0.02).positions)
    assert enabled(pitstop).check(move(), sensed(joints_at=NOW - 1), NOW).send is None  # nothing sent, nothing to undo


def test_the_hold_of_a_trajectory_cuts_it_short_where_it_should_be_by_now(chunks):
    gate = enabled(chunks)
    path = Q + 0.05 * np.arange(1, 9)[:, None] * np.eye(7)[0]
    assert gate.check(JointCommand(path, None, NOW), sensed(), NOW).failure is None
    decision = gate.trip("watchdog", "silence", None, NOW + 0.31)
    np.testing.assert_allclose(decision.send.command.positions, path[2:3])


def test_a_chunk_is_judged_at_every_point(chunks):
    path = Q + 0.05 * np.arange(1, 9)[:, None] * np.eye(7)[0]
    for k, wrong, rule in ((5, np.nan, "finite"), (6, 2.9, "joint limits"), (7, 1.0, "velocity")):
        broken = path.copy()
        broken[k, 0] = wrong
        assert enabled(chunks).check(JointCommand(broken, None, NOW), sensed(), NOW).failure.rule == rule


@pytest.mark.parametrize(
    ("twist", "rule"),
    [
        ([0.1, 0, 0, 0, 0, 0.5], None),
        ([np.inf, 0, 0, 0, 0, 0], "finite"),
        ([0.1, 0, 0], "shape"),
        ([0.5, 0, 0, 0, 0, 0], "velocity"),
        ([0, 0, 0, 0, 0, 2.1], "velocity"),
        ([0.3, 0, 0, 0, 0, 0], "step"),
        ([0, 0, 0, 0, 0, 1.5], "step"),
    ],
)
def test_a_twist_is_judged_and_its_hold_is_standstill(twists, twist, rule):
    gate = enabled(twists)
    decision = gate.check(TwistCommand(np.array(twist), None, NOW), sensed(), NOW)
    assert (decision.failure and decision.failure.rule) == rule
    if rule:
        assert decision.send.hold
        np.testing.assert_array_equal(decision.send.command.twist, np.zeros(6))


def test_a_twist_out_of_the_workspace_is_held(twists):
    height = twists.chain.forward(Q)[0][2]
    box = (*twists.tool.workspace[:2], (height - 0.005, 1.0))
    low = replace(twists, tool=replace(twists.tool, workspace=box, goals=None))
    failure = enabled(low).check(TwistCommand(np.array([0, 0, -0.1, 0, 0, 0]), None, NOW), sensed(), NOW).failure
    assert "workspace: hand.z would be" in failure.message


def test_a_moving_tool_is_stopped_when_the_policy_gives_no_command(twists):
    gate = enabled(twists)
    gate.check(TwistCommand(np.array([0.1, 0, 0, 0, 0, 0]), None, NOW), sensed(), NOW)
    decision = gate.check(None, sensed(), NOW)
    assert decision.send.hold
    assert "no command" in decision.failure.message


def test_a_hold_stays_until_somebody_enables(pitstop):
    gate = enabled(pitstop)
    gate.trip("operator", "stop was pressed", sensed(), NOW)
    for _ in range(5):
        decision = gate.check(move(), sensed(), NOW)
        assert (decision.send, decision.failure.rule, decision.state) == (None, "operator", State.HELD)
    assert gate.enable(sensed(), NOW, live=True) is None
    assert gate.check(move(), sensed(), NOW).send is not None


def test_after_enabling_again_the_arm_begins_where_it_is_measured(pitstop):
    gate = enabled(pitstop)
    gate.check(move(), sensed(), NOW)
    gate.trip("operator", "stop was pressed", sensed(), NOW)
    carried = bent(0, 1.0)  # by hand, meanwhile
    assert gate.enable(sensed(q=carried), NOW, live=True) is None
    assert gate.check(move(q=carried), sensed(q=carried), NOW).failure is None


def test_a_robot_that_is_enabled_is_not_enabled_in_another_way_before_it_is_stopped(pitstop):
    gate = enabled(pitstop)
    assert "enabled already: stop it first" in gate.enable(sensed(), NOW, live=False).message
    assert (gate.state, gate.dry_run) == (State.ENABLED, False)


def test_enabling_is_refused_while_a_sensor_is_wrong(pitstop):
    gate = SafetyGate(pitstop)
    assert gate.enable(sensed(wrist=NOW - 9), NOW).rule == "freshness"
    assert gate.enable(sensed(wrist=NOW - 0.19, front=NOW), NOW).rule == "skew"
    assert gate.enable(sensed(bent(2, np.nan)), NOW).rule == "finite"
    assert gate.state is State.DISABLED


def test_what_was_let_through_cannot_be_changed_afterwards(pitstop):
    command = move()
    gated = enabled(pitstop).check(command, sensed(), NOW).send
    command.positions[:] = 99.0
    assert np.abs(gated.command.positions).max() < 3
    with pytest.raises(ValueError, match="read-only"):
        gated.command.positions[:] = 99.0


STEPS = st.fixed_dictionaries(
    {
        "dt": st.sampled_from([0.0, 0.05, 0.1, 0.1, 0.1, 0.2, 3.0, -0.1]),
        "drift": st.floats(-0.3, 0.3),
        "joint": st.integers(0, 6),
        "way": st.one_of(st.just(0.05), st.floats(-0.4, 0.4), st.sampled_from([np.nan, np.inf, 5.0, 1e308])),
        "opening": st.sampled_from([None, 0.0, 0.08, 0.2, np.nan]),
        "ages": st.lists(st.sampled_from([0.0, 0.0, 0.05, 0.1, 0.16, 0.21, -1.0]), min_size=3, max_size=3),
        "answer": st.sampled_from([0.0, 0.0, 0.5, 1.5, -0.5]),
        "epoch": st.sampled_from([0, 0, 0, 0, 1]),
        "do": st.sampled_from(["", "", "", "", "", "enable", "enable", "beat", "beat", "trip", "blind", "misshapen"]),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=25))
def test_nothing_ever_leaves_the_gate_outside_the_limits_or_too_old_and_no_hold_ends_by_itself(pitstop, steps):
    lower, upper = np.array([joint.position for joint in pitstop.joints]).T
    box = np.array(pitstop.tool.workspace)
    gate, now, q, last, beat, epoch = SafetyGate(pitstop), NOW, Q.copy(), None, NOW, 0
    for step in steps:
        now += step["dt"]
        q[step["joint"]] += step["drift"] * 0.2
        front, wrist, joints = (now - age for age in step["ages"])
        view = sensed(q, now, joints, step["epoch"], front=front, wrist=wrist)
        view = replace(view, newest=None) if step["do"] == "blind" else view
        before = gate.state
        if step["do"] == "enable":
            if gate.enable(view, now, live=True) is None:
                assert (max(step["ages"]), min(step["ages"]) >= 0) <= (0.2, True)
                last, beat, epoch, before = None, now, step["epoch"], State.ENABLED
        elif step["do"] == "beat":
            gate.beat(now)
            beat = now
        elif step["do"] == "trip":
            gate.trip("operator", "stop", view, now)
        was = gate.state
        target = q.copy()
        target[step["joint"]] += step["way"]
        target = target[:6] if step["do"] == "misshapen" else target
        decision = gate.check(JointCommand(target[None], step["opening"], now - step["answer"]), view, now)
        assert not (before is State.HELD and step["do"] != "enable" and gate.state is not State.HELD)
        if was is State.ENABLED and decision.failure:
            assert gate.state is State.HELD  # in the very step in which the rule is broken
            assert decision.send is not None or last is None
        if decision.send is None:
            continue
        sent = decision.send.command.positions
        assert sent.shape == (1, 7)
        assert np.all((lower - 1e-8 <= sent) & (sent <= upper + 1e-8))
        tool = pitstop.chain.forward(sent[0])[0]
        assert np.all((box[:, 0] - 1e-8 <= tool) & (tool <= box[:, 1] + 1e-8))
        assert decision.send.at == now
        if decision.send.hold:
            continue
        assert np.all(np.abs(sent[0] - q) <= 0.25 + 1e-8)
        assert last is None or np.all(np.abs(sent[0] - last) <= 0.6 + 1e-8)
        assert step["opening"] in (None, 0.0, 0.08)
        assert all(-0.02 <= age <= limit for age, limit in zip(step["ages"], (0.2, 0.2, 0.15), strict=True))
        assert max(step["ages"]) - min(step["ages"]) <= 0.15 + 1e-9
        assert 0 <= step["answer"] <= 1.0
        assert 0 <= now - beat <= 0.5
        assert (step["epoch"], was, step["do"] in ("blind", "misshapen", "trip")) == (epoch, State.ENABLED, False)
        last = sent[0]


TWISTS = st.lists(st.sampled_from([0.0, 0.05, -0.05, 0.15, 0.3, -0.5, 1.5, np.nan, np.inf]), min_size=6, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TWISTS, st.booleans()), max_size=12))
def test_no_twist_ever_leaves_the_gate_outside_the_limits(twists, steps):
    gate, last, tool = enabled(twists), np.zeros(6), twists.tool
    for twist, enable in steps:
        if enable and gate.state is State.HELD:
            gate.enable(sensed(), NOW, live=True)
            last = np.zeros(6)
        decision = gate.check(TwistCommand(np.array(twist), None, NOW), sensed(), NOW)
        if decision.send is None:
            continue
        sent = decision.send.command.twist
        assert np.linalg.norm(sent[:3]) <= tool.speed + 1e-8
        assert np.linalg.norm(sent[3:]) <= tool.turn + 1e-8
        if not decision.send.hold:
            assert np.linalg.norm((sent - last)[:3]) <= tool.speed_step + 1e-8
            assert np.linalg.norm((sent - last)[3:]) <= tool.turn_step + 1e-8
        last = sent


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.one_of(st.just(0.02), st.floats(-0.4, 0.4), st.just(np.nan)), min_size=1, max_size=6)))
def test_no_chunk_ever_leaves_the_gate_outside_the_limits(chunks, plans):
    lower, upper = np.array([joint.position for joint in chunks.joints]).T
    gate = enabled(chunks)
    for changes in plans:
        if gate.state is State.HELD:
            gate.enable(sensed(), NOW, live=True)
        path = Q + np.cumsum(changes)[:, None] * np.eye(7)[0]
        decision = gate.check(JointCommand(path, None, NOW), sensed(), NOW)
        if decision.send is not None:
            sent = np.concatenate((Q[None], decision.send.command.positions))
            assert np.all((lower - 1e-8 <= sent) & (sent <= upper + 1e-8))
            assert np.abs(np.diff(sent, axis=0)).max() <= 0.25 + 1e-8


ODD = st.sampled_from([0.0, 0.05, -0.05, 0.24, 0.26, 0.5, 5.0, np.nan, np.inf, 1e308])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(ODD, min_size=7, max_size=7), st.lists(ODD, min_size=7, max_size=7) | st.none(), ODD,
    st.sampled_from([None, 0.0, 0.08, 0.2, np.nan]), st.integers(0, 3),
)  # fmt: skip
def test_the_short_way_through_the_rules_lets_pass_what_the_long_one_does(pitstop, way, before, at, opening, odd):
    rules = JointRules(pitstop)
    velocities = [None, np.zeros(7), np.full(7, np.nan), np.zeros(6)][odd]
    measured = JointState(np.append(Q[:6], Q[6] + at), velocities, opening, NOW, NOW)
    command = move(np.array(way), opening)
    previous = None if before is None else Q + np.array(before)
    with np.errstate(all="ignore"):
        kept = rules._plainly_kept(command, previous, measured)
        assert kept == (rules._first_broken(command, previous, measured) is None)
