"""The gate wakes K experts per token, and what it says is what runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moe_robot.moe import GateConfig, MoEFeedForward, Router, balance_loss, count_routes, execute, execute_loop, z_loss

ROLES = ("vision", "vision", "vision", "arm", "arm", "grasp")
MODALITIES = ("vision", "arm", "grasp")


def make_layer(experts_per_token: int = 2, prior: float = 1.0, seed: int = 0) -> MoEFeedForward:
    torch.manual_seed(seed)
    counts = {"vision": 3, "arm": 2, "grasp": 1}
    return MoEFeedForward(16, 8, counts, MODALITIES, GateConfig(experts_per_token, prior=prior))


def tokens(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 16, generator=generator), torch.randint(0, 3, (n,), generator=generator)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_sorted_execution_equals_the_token_by_token_definition(n, k, seed):
    layer = make_layer(k, seed=seed)
    x, modality = tokens(n, seed)
    plan = layer.router(x, modality)
    assert_close(execute(plan, x, layer.experts), execute_loop(plan, x, layer.experts), rtol=1e-5, atol=1e-6)


def test_exactly_two_experts_run_per_token():
    layer = make_layer()
    x, modality = tokens(50)
    rows = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[0]))
    _, plan = layer(x, modality)
    assert sum(rows) == 2 * 50
    assert (plan.ids_TK[:, 0] != plan.ids_TK[:, 1]).all()
    assert plan.counts_E.tolist() == torch.bincount(plan.ids_TK.reshape(-1), minlength=6).tolist()


def test_weights_of_the_chosen_sum_to_one_for_two_and_stay_the_probability_for_one():
    x, modality = tokens(20)
    assert_close(make_layer(2).router(x, modality).weights_TK.sum(dim=1), torch.ones(20))
    plan = make_layer(1).router(x, modality)
    assert_close(plan.weights_TK[:, 0], plan.probabilities_TE.max(dim=1).values)
    assert (plan.weights_TK < 1).all()


def test_the_two_with_the_highest_probability_are_chosen():
    x, modality = tokens(30)
    plan = make_layer().router(x, modality)
    kept = plan.probabilities_TE.gather(1, plan.ids_TK).min(dim=1).values
    others = plan.probabilities_TE.scatter(1, plan.ids_TK, -1.0).max(dim=1).values
    assert (kept >= others).all()


def test_the_prior_only_says_where_tokens_begin_and_the_gate_can_leave():
    layer = make_layer(prior=5.0)
    x, modality = tokens(60)
    before = layer.router(x, modality)
    roles = torch.tensor([MODALITIES.index(role) for role in ROLES])
    assert (roles[before.ids_TK[:, 0]] == modality).all()
    optimiser = torch.optim.SGD(layer.router.parameters(), lr=5.0)
    for _ in range(60):  # push every token to expert 0: a hard mask would make this impossible
        loss = -layer.router(x, modality).probabilities_TE[:, 0].clamp(min=1e-9).log().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (layer.router(x, modality).ids_TK[:, 0] == 0).float().mean() > 0.95


def test_a_frozen_gate_gets_no_gradient_and_a_learned_one_does():
    for learned in (True, False):
        torch.manual_seed(0)
        layer = MoEFeedForward(
            16, 8, {"vision": 3, "arm": 3}, ("vision", "arm"), GateConfig(kind="learned" if learned else "random")
        )
        x, modality = tokens(20)
        y, _ = layer(x, modality % 2)
        y.square().sum().backward()
        gradient = layer.router.weight_ED.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == learned


def test_experts_that_are_switched_off_get_no_token_and_k_falls_when_too_few_are_left():
    layer = make_layer()
    x, modality = tokens(40)
    available = torch.tensor([False, False, False, True, True, True])
    plan = layer.router(x, modality, available)
    assert plan.counts_E[:3].sum() == 0
    assert plan.experts_per_token == 2
    plan = layer.router(x, modality, torch.tensor([False] * 5 + [True]))
    assert plan.experts_per_token == 1
    assert_close(plan.weights_TK, torch.ones(40, 1))
    with pytest.raises(ValueError, match="switched off"):
        layer.router(x, modality, torch.zeros(6, dtype=torch.bool))


def test_a_token_alone_gives_what_it_gives_in_a_batch():
    layer = make_layer()
    x, modality = tokens(64)
    together, _ = layer(x, modality)
    alone = torch.cat([layer(x[t : t + 1], modality[t : t + 1])[0] for t in range(64)])
    assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_an_expert_without_tokens_gets_no_gradient_at_all():
    layer = make_layer()
    x, modality = tokens(3)
    y, plan = layer(x, modality)
    y.sum().backward()
    for expert, count in zip(layer.experts, plan.counts_E.tolist(), strict=True):
        assert (expert.out.weight.grad is None) == (count == 0)


def test_the_gate_computes_in_float32_under_bf16_autocast():
    layer = make_layer()
    x, modality = tokens(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = layer.router(x, modality)
    assert plan.logits_TE.dtype == torch.float32
    assert_close(plan.logits_TE, layer.router(x, modality).logits_TE)


def even_plan(collapsed: bool):
    """30 vision tokens over experts 0-2, evenly or all on experts 0 and 1."""
    router = Router(16, ROLES, MODALITIES, GateConfig(prior=0.0))
    logits = torch.full((30, 6), -20.0)
    for t in range(30):
        first, second = (0, 1) if collapsed else (t % 3, (t + 1) % 3)
        logits[t, first], logits[t, second] = 5.0, 4.9
    with torch.no_grad():
        router.weight_ED.zero_()
        router.weight_ED[:, :6] = torch.eye(6)
    return router(torch.cat([logits, torch.zeros(30, 10)], dim=1), torch.zeros(30, dtype=torch.int64))


def test_the_balance_loss_is_one_when_even_and_higher_when_collapsed():
    (even,), _ = balance_loss([even_plan(collapsed=False)], ROLES, MODALITIES)
    (collapsed,), _ = balance_loss([even_plan(collapsed=True)], ROLES, MODALITIES)
    assert_close(even, torch.tensor(1.0), rtol=1e-3, atol=1e-3)
    assert collapsed > 1.4


def test_a_modality_that_left_its_experts_is_not_called_balanced():
    plan = even_plan(collapsed=False)
    assert balance_loss([plan], ("arm",) * 3 + ("vision",) * 3, MODALITIES)[1] == 0


def test_the_balance_loss_weighs_modalities_equally_however_many_tokens_each_has():
    router = Router(16, ("vision",) * 3 + ("arm",) * 3, ("vision", "arm"), GateConfig(prior=8.0))
    x = torch.randn(103, 16, generator=torch.Generator().manual_seed(1))
    few = torch.tensor([0] * 100 + [1] * 3)
    each = [balance_loss([router(x[few == m], few[few == m])], router.roles, router.modalities)[0] for m in (0, 1)]
    assert_close(balance_loss([router(x, few)], router.roles, router.modalities)[0], torch.cat(each).mean(0, True))


def test_the_z_loss_is_the_mean_squared_log_partition():
    plan = make_layer().router(*tokens(10))
    expected = sum(float(torch.log(torch.exp(row).sum())) ** 2 for row in plan.logits_TE.detach()) / 10
    assert float(z_loss(plan).detach()) == pytest.approx(expected, rel=1e-5)


def test_counts_add_up_to_two_routes_per_token_and_modality():
    x, modality = tokens(33)
    plan = make_layer().router(x, modality)
    counts = count_routes(plan, 3)
    assert counts.sum(dim=1).tolist() == [2 * int((modality == m).sum()) for m in range(3)]
    assert counts.sum(dim=0).tolist() == plan.counts_E.tolist()
