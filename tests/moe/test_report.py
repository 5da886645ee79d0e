"""What is counted from a routing plan: routes, first choices, losses to capacity, tokens, entropy."""

from dataclasses import replace
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moe_robot.moe import (
    Choice,
    GateConfig,
    Router,
    count_dropped,
    count_first,
    count_routes,
    count_tokens,
    make_plan,
    sum_entropy,
)

ROLES = ("vision", "vision", "arm", "grasp")


def plan_of(probabilities: list[list[float]], modality: list[int], k: int = 2):
    p_TE = torch.tensor(probabilities)
    weights_TK, ids_TK = p_TE.topk(k, dim=-1)
    return make_plan(Choice(ids_TK, weights_TK, p_TE, p_TE.log(), torch.tensor(modality)))


def test_entropy_is_summed_per_modality_in_nats():
    even, sure, coin = [0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]
    plan = plan_of([even, even, sure, coin], [0, 0, 0, 2])
    assert_close(sum_entropy(plan, 3), torch.tensor([2 * log(4), 0.0, log(2)], dtype=torch.float64))


def test_an_expert_that_is_switched_off_adds_no_entropy():
    router = Router(8, ROLES, ("vision", "arm"))
    available = torch.tensor([True, True, False, False])
    plan = router(torch.zeros(5, 8), torch.tensor([1, 1, 1, 1, 1]), available)
    assert_close(sum_entropy(plan, 2)[1].item(), 5 * log(2))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_route_and_every_token_is_counted_once(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    modality = torch.randint(0, 3, (n,), generator=generator)
    plan = Router(8, ROLES, ("vision", "arm", "grasp"), GateConfig(k))(torch.randn(n, 8, generator=generator), modality)
    assert count_tokens(plan, 3).tolist() == torch.bincount(modality, minlength=3).tolist()
    assert (count_routes(plan, 3).sum(dim=1) == k * count_tokens(plan, 3)).all()
    assert count_routes(plan, 3).sum(dim=0).tolist() == plan.counts_E.tolist()
    assert (count_first(plan, 3).sum(dim=1) == count_tokens(plan, 3)).all()
    assert (count_first(plan, 3) <= count_routes(plan, 3)).all()


def test_the_first_choice_is_the_most_probable_expert():
    plan = plan_of([[0.1, 0.2, 0.7, 0.0], [0.6, 0.4, 0.0, 0.0]], [0, 1])
    assert count_first(plan, 2).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_routes_lost_to_capacity_are_counted_where_they_were_lost():
    plan = plan_of([[0.7, 0.3, 0.0, 0.0], [0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.8, 0.2]], [0, 1, 1])
    assert count_dropped(plan, 2).sum() == 0
    dropped = torch.tensor([[False, True], [True, True], [False, False]])
    lossy = replace(plan, kept_TK=~dropped, dropped_TK=dropped)
    assert count_dropped(lossy, 2).tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]
    assert_close(count_routes(lossy, 2), count_routes(plan, 2))  # a lost route was still chosen


@pytest.mark.parametrize("n", [0, 1])
def test_a_layer_without_tokens_has_zeros(n):
    plan = Router(8, ROLES, ("vision", "arm"))(torch.zeros(n, 8), torch.zeros(n, dtype=torch.int64))
    assert count_tokens(plan, 2).tolist() == [n, 0]
    assert sum_entropy(plan, 2).shape == (2,)
    assert count_routes(plan, 2).sum() == 2 * n
