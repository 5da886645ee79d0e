"""Each known way for a mixture to go wrong: it happens without the cure, and not with it.

A small world: tokens from four kinds, each with its own linear map to learn, and four experts behind a top-1 gate.
"""

import pytest
import torch
from torch.testing import assert_close

from moe_robot.moe import (
    ColdWatch,
    GateConfig,
    MoEFeedForward,
    Router,
    balance_loss,
    balance_loss_over_all,
    count_routes,
    drop_rate,
    forget_moments,
    revive,
    z_loss,
)

WIDTH, KINDS = 8, 4
MODALITY = ("only",)


def world(n: int, seed: int, shares=(0.25, 0.25, 0.25, 0.25)):
    """Tokens (n, 8) of four kinds, and where each kind's own map sends them."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=generator)
    maps = torch.randn(KINDS, WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    x = torch.eye(WIDTH)[kind] * 3 + torch.randn(n, WIDTH, generator=generator)
    return x, torch.einsum("td,tde->te", x, maps[kind])


def make(favour: float = 0.0, **gate) -> MoEFeedForward:
    """A layer whose gate starts with a bonus on expert 0."""
    torch.manual_seed(0)
    config = GateConfig(**{"experts_per_token": 1, "prior": 0.0} | gate)
    layer = MoEFeedForward(WIDTH, 16, {"only": KINDS}, MODALITY, config)
    with torch.no_grad():
        layer.router.bias_ME[:, 0] += favour
    return layer


def learn(layer, steps=150, extra=None, after=None, shares=(0.25, 0.25, 0.25, 0.25)):
    """Train on fresh tokens; returns the shares of the experts and the mean drop rate over the last twenty steps."""
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    counts, drops = torch.zeros(KINDS), []
    for step in range(steps):
        x, target = world(256, step, shares)
        y, plan = layer(x, torch.zeros(len(x), dtype=torch.int64))
        loss = (y - target).square().mean()
        if extra is not None:
            loss = loss + extra(plan)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if after is not None:
            after(plan, optimiser)
        if step >= steps - 20:
            counts += count_routes(plan, 1)[0]
            drops.append(float(drop_rate(plan)))
    return counts / counts.sum(), sum(drops) / len(drops)


def balance(plan):
    return balance_loss([plan], ("only",) * KINDS, MODALITY)[0].sum()


def test_collapse_one_expert_takes_all_and_the_balance_loss_prevents_it():
    alone, _ = learn(make(favour=6.0))
    assert alone.max() > 0.95
    balanced, _ = learn(make(favour=6.0), extra=balance)
    assert balanced.max() < 0.4


def test_skew_stays_and_the_balancing_bias_evens_it_out_without_any_loss():
    skewed = (0.7, 0.1, 0.1, 0.1)
    left, _ = learn(make(), shares=skewed)
    assert left.max() > 0.5
    layer = make(bias_balancing=True)
    evened, _ = learn(layer, steps=300, after=lambda plan, optimiser: layer.router.balance(0.01), shares=skewed)
    assert evened.max() < 0.35
    assert layer.router.balancing_ME.abs().max() > 0


def test_overflow_drops_tokens_of_a_skewed_gate_and_balance_or_no_capacity_keep_them():
    _, overflowing = learn(make(favour=6.0, capacity_factor=1.0))
    assert overflowing > 0.6
    _, balanced = learn(make(favour=6.0, capacity_factor=1.25), extra=balance)
    assert balanced < 0.15
    _, dropless = learn(make(favour=6.0))
    assert dropless == 0


def test_large_logits_are_nan_in_half_precision_and_finite_in_the_gate():
    layer = make()
    with torch.no_grad():
        layer.router.weight_ED.mul_(1e6)
    x = world(64, 0)[0] * 10
    half = (x.half() @ layer.router.weight_ED.half().T).softmax(dim=-1)
    assert half.isnan().any()
    with torch.autocast("cpu", dtype=torch.float16):
        plan = layer.router(x.half(), torch.zeros(64, dtype=torch.int64))
    assert plan.probabilities_TE.isfinite().all()
    assert_close(plan.probabilities_TE.sum(dim=-1), torch.ones(64))


def test_logits_grow_without_bound_and_the_z_loss_holds_them():
    def largest(weight: float) -> float:
        router = make().router
        optimiser = torch.optim.Adam(router.parameters(), lr=0.1)
        x = world(256, 0)[0]
        for _ in range(200):
            plan = router(x, torch.zeros(256, dtype=torch.int64))
            surer = -plan.probabilities_TE.max(dim=-1).values.clamp(min=1e-9).log().mean()
            loss = surer + weight * z_loss(plan)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return float(plan.logits_TE.detach().max())

    assert largest(0.0) > 10
    assert largest(0.3) < 2


def test_a_gate_that_overflows_all_the_same_says_so():
    router = make().router
    x = torch.full((4, WIDTH), 1e38)
    with pytest.raises(ValueError, match="the gate's logits are not finite"):
        Router(WIDTH, ("only",) * KINDS, MODALITY)(x * router.weight_ED.sign().max() * 1e3, torch.zeros(4).long())


def cold_layer() -> MoEFeedForward:
    layer = make()
    with torch.no_grad():
        layer.router.bias_ME[:, 3] = -30.0
    return layer


def test_a_cold_expert_stays_cold_by_itself():
    share, _ = learn(cold_layer())
    assert share[3] == 0


def test_a_cold_expert_is_found_by_name_and_comes_back_as_a_copy_of_the_busiest():
    layer = cold_layer()
    watch = ColdWatch(("only",) * KINDS, MODALITY, patience=20, decay=0.8)
    done = []

    def mend(plan, optimiser):
        for e in watch.update(count_routes(plan, 1)):
            revival = revive(layer, e, watch.load_E.tolist())
            watch.forget(e)
            forget_moments(optimiser, [revival])
            done.append(revival)

    share, _ = learn(layer, after=mend)
    assert {revival.cold for revival in done} == {"only.3"}
    assert share[3] > 0.05


@pytest.mark.parametrize("storage", ["separate", "stacked"])
def test_revival_copies_weights_and_gate_row_and_clears_what_the_optimiser_remembered(storage):
    layer = cold_layer()
    layer.experts.store_as(storage)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    x, target = world(64, 0)
    (layer(x, torch.zeros(64).long())[0] - target).square().mean().backward()
    optimiser.step()
    before = layer.router.weight_ED[1].clone()
    done = revive(layer, 3, [0.1, 2.0, 0.5, 0.0], noise=0.0)
    forget_moments(optimiser, [done])
    assert (done.cold, done.hot) == ("only.3", "only.1")
    weights = layer.state_dict()
    assert_close(weights["experts.3.out.weight"], weights["experts.1.out.weight"])
    assert_close(layer.router.weight_ED[3], before)
    assert_close(layer.router.bias_ME[0, 3], layer.router.bias_ME[0, 1])
    if storage == "separate":
        assert all(p not in optimiser.state for p in layer.experts[3].parameters())
    else:
        moments = optimiser.state[layer.experts.out_EDH]["exp_avg"]
        assert moments[3].abs().sum() == 0
        assert moments[1].abs().sum() > 0
    moments = optimiser.state[layer.router.weight_ED]["exp_avg"]
    assert moments[3].abs().sum() == 0
    assert moments[1].abs().sum() > 0


def test_an_expert_whose_sensor_is_missing_is_not_cold():
    watch = ColdWatch(("vision", "vision", "arm"), ("vision", "arm"), patience=5, decay=0.0)
    for _ in range(20):
        assert watch.update(torch.tensor([[0, 0, 0], [0, 0, 7]])) == []
    found = [e for _ in range(5) for e in watch.update(torch.tensor([[9, 0, 0], [0, 0, 7]]))]
    assert found == [1]


def test_layers_that_each_collapsed_look_even_when_pooled_and_not_when_each_is_asked():
    x = torch.zeros(40, WIDTH)
    plans = []
    for hot in range(KINDS):
        layer = make()
        with torch.no_grad():
            layer.router.bias_ME[:, hot] = 30.0
        plans.append(layer.router(x, torch.zeros(40, dtype=torch.int64)))
    f = torch.cat([plan.ids_TK for plan in plans]).flatten().bincount(minlength=KINDS) / 160
    p = torch.cat([plan.probabilities_TE for plan in plans]).mean(dim=0)
    assert_close(KINDS * (f * p).sum(), torch.tensor(1.0))
    assert balance_loss_over_all(plans).mean() > 3.9
