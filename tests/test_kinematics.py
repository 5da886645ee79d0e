"""Serial-chain kinematics against finite differences, rotation algebra and its own promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_robot.kinematics import SerialChain, rotation_vector, wrap_angle, yaw_rotation

seeds = st.integers(0, 2**32 - 1)


def rotation_of(vector):
    """Rodrigues' formula: the oracle for everything about rotations here."""
    angle = np.linalg.norm(vector)
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def random_chain(rng, joints=7):
    axes = rng.normal(size=(joints, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    rotations = np.array([rotation_of(rng.normal(size=3)) for _ in range(joints + 1)])
    return SerialChain(rotations, rng.uniform(-0.3, 0.3, (joints + 1, 3)), axes, np.tile([-2.5, 2.5], (joints, 1)))


def test_one_joint_about_z_turns_the_tool_in_the_plane():
    chain = SerialChain(
        np.array([np.eye(3)] * 2),
        np.array([[0, 0, 1.0], [2.0, 0, 0]]),
        np.array([[0, 0, 1.0]]),
        np.array([[-3.0, 3.0]]),
    )
    position, rotation = chain.forward(np.array([np.pi / 2]))
    np.testing.assert_allclose(position, [0, 2, 1], atol=1e-12)
    np.testing.assert_allclose(rotation, yaw_rotation(np.pi / 2), atol=1e-12)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_the_position_alone_is_that_of_forward_kinematics(seed):
    rng = np.random.default_rng(seed)
    chain, q = random_chain(rng), rng.uniform(-2, 2, 7)
    np.testing.assert_allclose(chain.position(q), chain.forward(q)[0], rtol=0, atol=1e-14)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_jacobian_is_the_derivative_of_forward_kinematics(seed):
    rng = np.random.default_rng(seed)
    chain, q, h = random_chain(rng), rng.uniform(-2, 2, 7), 1e-6
    jacobian = chain.jacobian(q)
    for joint in range(7):
        step = np.zeros(7)
        step[joint] = h
        (ahead, turned), (behind, turned_back) = chain.forward(q + step), chain.forward(q - step)
        np.testing.assert_allclose(jacobian[:3, joint], (ahead - behind) / (2 * h), atol=1e-7)
        np.testing.assert_allclose(jacobian[3:, joint], rotation_vector(turned @ turned_back.T) / (2 * h), atol=1e-7)


@given(seeds, st.floats(0, np.pi - 1e-4))
@settings(max_examples=60, deadline=None)
def test_rotation_vector_undoes_the_exponential_map(seed, angle):
    axis = np.random.default_rng(seed).normal(size=3)
    vector = angle * axis / np.linalg.norm(axis)
    np.testing.assert_allclose(rotation_vector(rotation_of(vector)), vector, atol=1e-6)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_half_a_turn_has_a_rotation_vector_of_length_pi(seed):
    axis = np.random.default_rng(seed).normal(size=3)
    half_turn = rotation_of(np.pi * axis / np.linalg.norm(axis))
    vector = rotation_vector(half_turn)
    assert np.linalg.norm(vector) == pytest.approx(np.pi)
    np.testing.assert_allclose(rotation_of(vector), half_turn, atol=1e-6)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_solve_reaches_a_pose_near_by(seed):
    rng = np.random.default_rng(seed)
    chain, q = random_chain(rng), rng.uniform(-1.5, 1.5, 7)
    if np.linalg.svd(chain.jacobian(q), compute_uv=False)[-1] < 0.1:
        return  # near a singularity damping trades accuracy for small joint steps, on purpose
    position, rotation = chain.forward(q)
    found = chain.solve(q + rng.uniform(-0.05, 0.05, 7), position, rotation, posture=q, iterations=30)
    reached, turned = chain.forward(found)
    np.testing.assert_allclose(reached, position, atol=1e-4)
    np.testing.assert_allclose(turned, rotation, atol=1e-3)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_solve_stays_inside_the_joint_limits_even_for_a_pose_out_of_reach(seed):
    rng = np.random.default_rng(seed)
    chain = random_chain(rng)
    found = chain.solve(rng.uniform(-2, 2, 7), rng.normal(size=3) * 9, np.eye(3), np.zeros(7), iterations=20)
    assert np.all(np.isfinite(found))
    assert np.all(found >= chain.limits[:, 0])
    assert np.all(found <= chain.limits[:, 1])


def test_posture_moves_the_elbow_and_not_the_tool():
    rng = np.random.default_rng(4)
    chain, q = random_chain(rng), rng.uniform(-1, 1, 7)
    posture = q + 0.3
    position, rotation = chain.forward(q)
    found = chain.solve(q, position, rotation, posture, iterations=40)
    reached, turned = chain.forward(found)
    assert np.linalg.norm(found - posture) < 0.97 * np.linalg.norm(q - posture)
    np.testing.assert_allclose(reached, position, atol=2e-4)
    np.testing.assert_allclose(turned, rotation, atol=2e-3)


def test_solve_remembers_nothing_between_calls():
    chain, q = random_chain(np.random.default_rng(1)), np.full(7, 0.2)
    position, rotation = chain.forward(q + 0.1)
    first = chain.solve(q, position, rotation, q)
    chain.solve(-q, position + 1, rotation, -q)
    np.testing.assert_array_equal(first, chain.solve(q, position, rotation, q))


def test_a_small_step_moves_the_tool_by_the_twist_that_was_asked():
    rng = np.random.default_rng(2)
    chain, q = random_chain(rng), rng.uniform(-1, 1, 7)
    twist = np.array([1e-4, -2e-4, 1e-4, 1e-4, 0, -1e-4])
    position, rotation = chain.forward(q)
    moved, turned = chain.forward(q + chain.step(q, twist, damping=1e-4))
    np.testing.assert_allclose(moved - position, twist[:3], atol=2e-6)
    np.testing.assert_allclose(rotation_vector(turned @ rotation.T), twist[3:], atol=2e-6)


def test_a_chain_with_parts_missing_is_refused():
    with pytest.raises(ValueError, match="7 joints needs 8 links"):
        SerialChain(np.zeros((7, 3, 3)), np.zeros((8, 3)), np.zeros((7, 3)), np.zeros((7, 2)))


@given(st.floats(-50, 50), st.sampled_from([np.pi / 2, np.pi, 2 * np.pi]))
def test_wrapped_angles_lie_in_one_period_and_differ_by_whole_ones(angle, period):
    wrapped = wrap_angle(angle, period)
    assert -period / 2 <= wrapped <= period / 2
    assert (angle - wrapped) / period == pytest.approx(round((angle - wrapped) / period), abs=1e-9)
