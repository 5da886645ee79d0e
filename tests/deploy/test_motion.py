"""Actions become the motions that they mean in simulation, and such as the safety gate lets through."""

from dataclasses import replace

import numpy as np
import pytest

from moe_envs.pitstop import control
from moe_envs.pitstop.env import PitStopEnv
from moe_robot.deploy.motion import command
from moe_robot.deploy.observation import observe, state_vector
from moe_robot.deploy.robot_io import Image, JointState
from moe_robot.deploy.safety import SafetyGate
from moe_robot.deploy.sync import Sensed
from moe_robot.kinematics import rotation_vector
from moe_robot.types import UserError

PIXELS = np.zeros((96, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def world():
    env = PitStopEnv(cameras=())
    env.reset(seed=0)
    return env


def state(q, velocities=None, opening=0.04, at=0.0):
    return JointState(np.asarray(q, float), velocities, opening, at, at)


def sensed(joints):
    return Sensed({name: Image(PIXELS, 0.0, 0.0) for name in ("front", "wrist")}, joints, joints, 0)


@pytest.mark.parametrize("meaning", ["cartesian", "joint"])
def test_an_action_is_the_motion_that_it_is_in_the_simulated_world_and_passes_the_gate(pitstop, world, meaning):
    contract = pitstop
    if meaning == "joint":
        names, units = control.JOINT_NAMES, (control.JOINT_UNIT,) * 7
        action = replace(pitstop.action, meaning="joint_delta", names=names, units=units)
        slow = tuple(replace(joint, velocity=control.JOINT_SPEED) for joint in pitstop.joints)
        contract = replace(pitstop, action=action, joints=slow)
    rng = np.random.default_rng(0)
    gate = SafetyGate(contract)
    q = world.joint_positions()
    assert gate.enable(sensed(state(q)), 0.0) is None
    wild = rng.uniform(-1.5, 1.5, len(contract.action.names))  # the world, too, takes 1.5 for 1
    for step in range(200):
        wild = rng.uniform(-1.5, 1.5, len(wild)) if step % 10 == 0 else wild
        theirs = control.plan(world.chain, q, wild, meaning, contract.period_s)
        mine = command(wild, state(q), contract, 0.0)
        np.testing.assert_allclose(mine.positions[0], q + theirs.velocity * contract.period_s, atol=1e-5)
        assert mine.opening == pytest.approx(theirs.opening)
        failure = gate.check(mine, sensed(state(q)), 0.0).failure
        assert failure is None or meaning == "joint"  # joint actions know no workspace
        q = mine.positions[0]


def test_the_shipped_contract_has_the_kinematics_of_the_world_to_the_last_digit(pitstop, world):
    for q in np.random.default_rng(0).uniform(pitstop.chain.limits[:, 0], pitstop.chain.limits[:, 1], (20, 7)):
        for mine, theirs in zip(pitstop.chain.forward(q), world.chain.forward(q), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-14)


def test_a_joint_position_is_gone_to_at_the_allowed_speed(pitstop):
    action = replace(pitstop.action, meaning="joint_position", names=control.JOINT_NAMES, units=(1.0,) * 7, clip=None)
    contract = replace(pitstop, action=action)
    q = np.array(pitstop.tool.posture)
    near = command(np.append(q + 0.1, 0.0), state(q), contract, 0.0)
    np.testing.assert_allclose(near.positions[0], q + 0.1)
    far = command(np.append(np.full(7, 9.0), 0.0), state(q), contract, 0.0)
    assert np.abs(far.positions[0] - q).max() == pytest.approx(0.25)
    assert (near.opening, far.observed) == (pytest.approx(0.04), 0.0)


def test_a_twist_grows_step_by_step_to_its_speed(twists):
    q, before = np.array(twists.tool.posture), np.zeros(6)
    for expected in (0.2, 0.4, 0.4):
        before = command(np.array([1.0, 0, 0, 0, 0]), state(q), twists, 0.0, before).twist
        np.testing.assert_allclose(before, [expected, 0, 0, 0, 0, 0], atol=1e-12)
    back = command(np.zeros(5), state(q), twists, 0.0, before).twist
    assert back[0] == pytest.approx(0.2)


def test_a_turn_about_any_axis_turns_the_tool_by_it(pitstop):
    names = ("x", "y", "z", "rx", "ry", "rz", "gripper")
    action = replace(pitstop.action, names=names, units=(1.0,) * 6)
    contract = replace(pitstop, action=action)
    q = np.array(pitstop.tool.posture)
    turn = np.array([0, 0, 0, 0.05, -0.03, 0.08, 0])
    before, after = (contract.chain.forward(p) for p in (q, command(turn, state(q), contract, 0.0).positions[0]))
    np.testing.assert_allclose(rotation_vector(after[1] @ before[1].T), turn[3:6], atol=2e-3)
    np.testing.assert_allclose(after[0], before[0], atol=2e-3)


def test_the_state_is_what_the_simulated_world_observes(pitstop, world):
    observed = world.reset(seed=3)[0]["agent_pos"]
    assert pitstop.state == world.state_names
    joints = state(observed[:7], observed[7:14], float(observed[14]))
    np.testing.assert_allclose(state_vector(joints, pitstop), observed, atol=1e-5)


def test_an_observation_waits_for_every_sensor_and_is_as_old_as_its_oldest_part(pitstop):
    whole = sensed(state(np.zeros(7), np.zeros(7)))
    images = {"front": Image(PIXELS, 5.0, 5.0), "wrist": Image(PIXELS, 4.0, 5.0)}
    observation, when = observe(replace(whole, images=images, joints=replace(whole.joints, sensed=4.5)), pitstop, "go")
    assert (set(observation.images), observation.task, when) == ({"front", "wrist"}, "go", 4.0)
    assert observe(replace(whole, images={"front": images["front"]}), pitstop, "go") is None
    assert observe(replace(whole, joints=None), pitstop, "go") is None


def test_a_robot_that_tells_no_velocities_is_refused_when_the_policy_needs_them(pitstop):
    with pytest.raises(UserError, match=r"has 'joint1.vel', and /joint_states tells no velocities"):
        state_vector(state(np.zeros(7)), pitstop)


def test_an_infinite_action_is_not_clipped_to_one_that_the_gate_would_let_pass(pitstop):
    gate, q = SafetyGate(pitstop), np.array(pitstop.tool.posture)
    assert gate.enable(sensed(state(q)), 0.0) is None
    with np.errstate(all="ignore"):
        wrong = command(np.array([np.inf, 0.0, 0.0, 0.0, 1.0]), state(q), pitstop, 0.0)
    assert gate.check(wrong, sensed(state(q)), 0.0).failure.rule == "finite"
