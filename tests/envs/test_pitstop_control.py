"""What an action does: waypoints from the measured pose, at limited speed, with nothing remembered."""

import numpy as np
import pytest

from moe_envs.pitstop import control
from moe_envs.pitstop.dimensions import MAX_OPENING
from moe_envs.pitstop.env import PitStopEnv
from moe_envs.pitstop.panda import DOWN, POSTURE

MIDDLE = np.array([0.47, 0.0, 0.25])


def at_the_middle(**options):
    env = PitStopEnv(cameras=(), **options)
    env.reset(seed=0)
    env.data.qpos[:7] = env.chain.solve(POSTURE, MIDDLE, DOWN, POSTURE, iterations=40)
    env._refresh()
    return env


def travel(env, action, steps):
    """Tool positions (steps, 3) and yaws (steps,) after each of so many control steps."""
    states = []
    for _ in range(steps):
        env.step(np.asarray(action, dtype=np.float32))
        states.append(env.state())
    return np.array([s.tool for s in states]), np.array([s.yaw for s in states])


@pytest.mark.parametrize("hz", [10, 20])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_far_waypoint_is_approached_straight_at_the_speed_limit(hz, axis):
    action = np.zeros(5)
    action[axis] = -0.5 if axis == 2 else 0.6
    positions, _ = travel(at_the_middle(control_hz=hz), action, 5)
    speed = np.diff(positions, axis=0) * hz
    np.testing.assert_allclose(np.abs(speed[:, axis]), control.SPEED, rtol=0.03)
    assert np.abs(np.delete(positions - MIDDLE, axis, axis=1)).max() < 0.004


def test_a_near_waypoint_is_reached_in_one_step_and_not_passed():
    env = at_the_middle()
    positions, _ = travel(env, [0.02 / 0.4, -0.015 / 0.4, 0.01 / 0.4, 0, 1], 1)
    np.testing.assert_allclose(positions[0] - MIDDLE, [0.02, -0.015, 0.01], atol=0.0015)
    positions, _ = travel(env, [0, 0, 0, 0, 1], 5)
    np.testing.assert_allclose(positions - MIDDLE, np.tile([0.02, -0.015, 0.01], (5, 1)), atol=0.002)


@pytest.mark.parametrize("hz", [10, 20])
def test_yaw_turns_at_its_own_limit_and_leaves_the_hand_in_place(hz):
    positions, yaws = travel(at_the_middle(control_hz=hz), [0, 0, 0, 0.5, 1], 5)
    np.testing.assert_allclose(np.diff(yaws)[1:] * hz, control.YAW_SPEED, rtol=0.05)
    assert np.abs(positions - MIDDLE).max() < 0.003


def test_the_gripper_goes_where_it_is_told_and_no_further():
    env = at_the_middle()
    for command, opening in ((-1.0, 0.0), (0.0, MAX_OPENING / 2), (1.0, MAX_OPENING)):
        for _ in range(5):
            env.step(np.array([0, 0, 0, 0, command], dtype=np.float32))
        assert env.state().opening == pytest.approx(opening, abs=0.003)


@pytest.mark.parametrize("mode", ["cartesian", "joint"])
def test_the_same_state_and_action_give_the_same_motion_whatever_was_commanded_before(mode):
    rng, outcomes = np.random.default_rng(0), []
    env = at_the_middle(control=mode)
    for _ in range(3):
        env.step(rng.uniform(-0.3, 0.3, env.action_space.shape).astype(np.float32))
    positions, velocities = env.data.qpos.copy(), env.data.qvel.copy()
    action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
    for earlier in (None, np.ones, lambda n: -np.ones(n)):
        if earlier is not None:
            for _ in range(4):
                env.step(earlier(env.action_space.shape[0]).astype(np.float32))
        env.data.qpos[:], env.data.qvel[:] = positions, velocities
        env.data.qacc_warmstart[:] = 0  # the solver's first guess, not part of the state
        env._refresh()
        outcomes.append(env.step(action)[0]["agent_pos"])
    np.testing.assert_array_equal(outcomes[1], outcomes[0])
    np.testing.assert_array_equal(outcomes[2], outcomes[0])


def test_the_hand_stays_upright_and_inside_the_workspace_under_random_actions():
    env = at_the_middle()
    rng = np.random.default_rng(3)
    for _ in range(60):
        env.step(rng.uniform(-1, 1, 5).astype(np.float32) * [1, 1, 1, 1, 0] + [0, 0, 0.15, 0, 1])
        position, rotation = env.chain.forward(env.joint_positions())
        assert rotation[2, 2] < -0.97
        assert np.all(position > control.WORKSPACE[:, 0] - 0.02)
        assert np.all(position < control.WORKSPACE[:, 1] + 0.02)


def test_joint_actions_move_each_joint_toward_its_target_at_its_limit():
    env = at_the_middle(control="joint")
    start = env.joint_positions()
    action = np.array([0.1, -0.05, 0, 0, 0.02, 0, 0, 1], dtype=np.float32)
    env.step(action)
    np.testing.assert_allclose(env.joint_positions() - start, action[:7] * control.JOINT_UNIT, atol=0.02)
    env.step(np.array([1, 0, 0, 0, 0, 0, 0, 1], dtype=np.float32))
    before = env.joint_positions()
    env.step(np.array([1, 0, 0, 0, 0, 0, 0, 1], dtype=np.float32))
    assert (env.joint_positions() - before)[0] * env.control_hz == pytest.approx(control.JOINT_SPEED, rel=0.05)


def test_actions_outside_the_box_are_read_as_its_edge():
    outcomes = []
    for scale in (1, 5):
        env = at_the_middle()
        env.step(np.array([0, scale, 0, 0, 1], dtype=np.float32))
        outcomes.append(env.data.qpos.copy())
    np.testing.assert_array_equal(*outcomes)


@pytest.mark.parametrize("mode", control.CONTROLS)
def test_shortening_keeps_the_direction_and_changes_nothing_that_is_near(mode):
    n = 5 if mode == "cartesian" else 8
    far, near = np.full(n, 0.5), np.full(n, 0.01)
    np.testing.assert_array_equal(control.shorten(near, mode, 0.1), near)
    short = control.shorten(far, mode, 0.1)
    assert short[-1] == far[-1]
    if mode == "cartesian":
        assert np.linalg.norm(short[:3]) * control.POSITION_UNIT == pytest.approx(0.04)
        assert short[3] * control.YAW_UNIT == pytest.approx(0.2)
    else:
        np.testing.assert_allclose(short[:7], 0.15)


def test_a_joint_action_names_the_same_waypoint_as_its_cartesian_one():
    env = at_the_middle(control="joint")
    q = env.joint_positions()
    action = control.joint_action(env.chain, q, np.array([0.2, -0.3, -0.2, 0.1, -1.0]))
    position, yaw = control.tool_pose(env.chain, q + control.JOINT_UNIT * action[:7])
    np.testing.assert_allclose(position, np.add(MIDDLE, [0.08, -0.12, -0.08]), atol=1e-3)
    assert yaw == pytest.approx(0.05 * np.pi, abs=1e-2)
    assert action[7] == -1.0


def test_a_joint_command_moves_the_arm_exactly_as_a_step_does():
    stepped, commanded = (at_the_middle(control="joint") for _ in range(2))
    action = np.array([0.1, -0.05, 0.08, 0.1, 0.02, -0.1, 0.05, -1.0])
    for _ in range(3):
        commanded.move_joints(commanded.joint_positions() + action[:7])
        commanded.move_fingers(0.0)
        for _ in range(5):
            commanded.advance()
        _, _, _, _, info = stepped.step(action)
    np.testing.assert_array_equal(commanded.data.qpos, stepped.data.qpos)
    assert commanded.outcome() == info
    assert 5 * commanded.update_s == pytest.approx(1 / 10)


def test_the_arm_holds_where_its_last_command_ends():
    env = at_the_middle()
    target = env.joint_positions() + 0.05
    env.move_fingers(0.03)
    env.move_joints(target)
    for _ in range(50):
        env.advance()
    positions, velocities = env.joints()
    assert len(positions) == len(velocities) == len(env.joint_names) == 9
    np.testing.assert_allclose(positions[:7], target, atol=0.002)
    assert positions[7:].sum() == pytest.approx(0.03, abs=0.001)
    assert np.abs(velocities).max() < 0.01
    env.reset(seed=1)  # another episode knows nothing of the last one's target
    before = env.joint_positions()
    env.advance()
    np.testing.assert_allclose(env.joint_positions(), before, atol=0.001)
