"""Placements of experts on devices: against all placements where these can be counted, and as properties."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_robot.evaluation.placement import (
    SLACK,
    LayerRoutes,
    Steps,
    contiguous,
    draw_steps,
    longest_first,
    lower_bound_S,
    play,
    propose,
)


def steps_of(ids_STK: np.ndarray, experts: int, devices: int) -> Steps:
    """S steps of T tokens, the tokens dealt out to the devices in turn."""
    s, t, k = ids_STK.shape
    return Steps(np.repeat(np.arange(s), t), np.tile(np.arange(t) % devices, s), ids_STK.reshape(s * t, k), s, experts)


@st.composite
def routed(draw, most_experts=6, most_devices=3):
    """Random steps, some experts much hotter than others, some routes absent; and a number of devices."""
    experts = draw(st.integers(2, most_experts))
    devices = draw(st.integers(2, min(most_devices, experts)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heat = rng.dirichlet(np.full(experts, draw(st.sampled_from([0.3, 1.0, 10.0]))))
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 12)))
    ids = np.stack(
        [
            rng.choice(experts, 2, replace=False, p=(heat + 0.01) / (heat + 0.01).sum())
            for _ in range(shape[0] * shape[1])
        ]
    )
    ids[rng.random(ids.shape) < 0.1] = -1
    return steps_of(ids.reshape(*shape, 2), experts, devices), devices


def time_of(steps: Steps, here_EN: np.ndarray) -> int:
    return int(play(steps, here_EN).load_SN.max(axis=1).sum())


def all_placements(experts: int, devices: int):
    room = -(-experts // devices)
    for at in product(range(devices), repeat=experts):
        if max(np.bincount(at, minlength=devices)) <= room:
            yield np.array(at)[:, None] == np.arange(devices)


@settings(max_examples=30, deadline=None)
@given(routed())
def test_a_proposal_is_near_the_best_of_all_placements_and_no_worse_than_the_usual_one(case):
    steps, devices = case
    here_EN = propose(steps, devices)
    assert (here_EN.sum(axis=1) == 1).all()
    assert here_EN.sum(axis=0).max() <= -(-steps.experts // devices)
    best = min(time_of(steps, other) for other in all_placements(steps.experts, devices))
    found = time_of(steps, here_EN)
    assert lower_bound_S(steps, devices).sum() <= best <= found
    assert found <= 1.25 * best
    assert found <= time_of(steps, contiguous(steps.experts, devices)) * (1 + SLACK) + 1e-9


@settings(max_examples=40, deadline=None)
@given(routed(most_experts=8, most_devices=4), st.integers(0, 6))
def test_copies_are_on_devices_of_their_own_and_no_route_is_lost(case, copies):
    steps, devices = case
    copies = min(copies, steps.experts * (devices - 1))
    here_EN = propose(steps, devices, copies)
    assert here_EN.sum() == steps.experts + copies
    assert (here_EN.sum(axis=1) >= 1).all()
    assert here_EN.sum(axis=0).max() <= -(-(steps.experts + copies) // devices)
    outcome = play(steps, here_EN)
    assert outcome.load_SN.sum() == outcome.routes == (steps.ids_TK >= 0).sum()
    assert (outcome.load_SN.sum(axis=1) == steps.loads_SE().sum(axis=1)).all()
    assert (outcome.load_SN.max(axis=1) >= lower_bound_S(steps, devices, copies)).all()
    assert outcome.sends <= outcome.leaving <= outcome.routes


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=7), st.integers(2, 3))
def test_the_greedy_start_keeps_grahams_bound(loads, devices):
    load_E = np.array(loads, float)
    at_E = longest_first(load_E, devices, room=len(loads))
    best = min(max(np.bincount(at, load_E, minlength=devices)) for at in product(range(devices), repeat=len(loads)))
    assert np.bincount(at_E, load_E, minlength=devices).max() <= (4 / 3 - 1 / (3 * devices)) * best + 1e-9


def test_steps_are_balanced_one_by_one_and_not_in_their_mean():
    # Experts 0 and 1 are busy in the even steps, 2 and 3 in the odd ones: on average all are alike.
    even, odd = [[0, 1]] * 8, [[2, 3]] * 8
    steps = steps_of(np.array([even, odd] * 4), 4, 2)
    assert play(steps, contiguous(4, 2)).skew_S().tolist() == [2.0] * 8
    assert play(steps, propose(steps, 2)).skew_S().tolist() == [1.0] * 8


def test_where_time_is_equal_experts_of_the_same_tokens_share_a_device():
    tokens = [[0, 2]] * 6 + [[1, 3]] * 6
    steps = steps_of(np.array([tokens]), 4, 2)
    apart, together = play(steps, contiguous(4, 2)), play(steps, propose(steps, 2))
    assert together.skew_S().tolist() == apart.skew_S().tolist() == [1.0]
    assert together.sends < apart.sends
    assert together.sends == 6, "half of the tokens live beside both of their experts, the others travel once"


def test_a_route_stays_at_home_where_there_is_a_copy():
    steps = steps_of(np.array([[[0, 1], [0, 1]]]), 2, 2)
    everywhere = np.ones((2, 2), bool)
    assert play(steps, everywhere).leaving == 0
    one = np.array([[True, False], [False, True]])
    assert (play(steps, one).leaving, play(steps, one).sends) == (2, 2)
    alone = np.array([[True, False], [True, False]])
    assert (play(steps, alone).leaving, play(steps, alone).sends) == (2, 1)
    assert play(steps, alone).load_SN.tolist() == [[4, 0]]


def test_a_step_holds_different_frames_and_all_their_tokens():
    frame_T = np.array([2, 0, 0, 1, 2, 2])
    ids_TK = np.array([[20], [1], [2], [10], [21], [22]])
    (steps,) = draw_steps([LayerRoutes(frame_T, ids_TK)], np.array([0, 2]), 30, 2, 2, 5, seed=0)
    for s in range(5):
        mine = steps.step_T == s
        assert sorted(steps.ids_TK[mine, 0]) == [1, 2, 20, 21, 22]
        homes = {
            frame: set(steps.home_T[mine & np.isin(steps.ids_TK[:, 0], ids)])
            for frame, ids in ((0, [1, 2]), (2, [20, 21, 22]))
        }
        assert sorted(map(sorted, homes.values())) == [[0], [1]]


@pytest.mark.parametrize(("experts", "devices", "sizes"), [(8, 4, [2, 2, 2, 2]), (5, 2, [3, 2])])
def test_the_usual_placement_is_in_order_and_even(experts, devices, sizes):
    here_EN = contiguous(experts, devices)
    assert here_EN.sum(axis=0).tolist() == sizes
    assert (np.diff(here_EN.argmax(axis=1)) >= 0).all()
