"""What a gate can be asked for beyond the plain top-K: units, masks, capacity, noise, expert choice, other experts."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moe_robot.moe import (
    AttentionExpert,
    ConvolutionExpert,
    GateConfig,
    MoEFeedForward,
    Router,
    Units,
    balance_loss,
    count_routes,
    drop_rate,
    execute,
    execute_loop,
    global_entropy,
    importance_loss,
    load_loss,
    local_entropy,
    z_loss,
)

D, COUNTS, MODALITIES = 16, {"vision": 3, "arm": 2, "grasp": 1}, ("vision", "arm", "grasp")
ROLES = ("vision",) * 3 + ("arm",) * 2 + ("grasp",)


def make(seed: int = 0, kinds=None, shared: int = 0, **gate) -> MoEFeedForward:
    torch.manual_seed(seed)
    return MoEFeedForward(D, 8, COUNTS, MODALITIES, GateConfig(**gate), kinds=kinds, shared=shared)


def tokens(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator), torch.randint(0, 3, (n,), generator=generator)


# --- what is absent


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 6), seed=st.integers(0, 99))
def test_every_token_keeps_to_the_experts_that_it_has(n, k, seed):
    layer = make(seed, experts_per_token=k)
    x, modality = tokens(n, seed)
    available = torch.rand(n, 6, generator=torch.Generator().manual_seed(seed)) > 0.5
    available[0, 0] = True
    y, plan = layer(x, modality, available)
    assert_close(y, execute_loop(plan, x, layer.experts), rtol=1e-5, atol=1e-6)
    visited = torch.zeros(n, 6, dtype=torch.bool).scatter(1, plan.ids_TK, plan.chosen_TK)
    assert not (visited & ~available).any()
    assert_close(visited.sum(dim=1), available.sum(dim=1).clamp(max=k))
    assert int(plan.counts_E.sum()) == int(visited.sum()) == int(count_routes(plan, 3).sum())
    assert y.isfinite().all()


def test_a_token_without_any_expert_gives_zeros_and_is_in_no_loss():
    layer = make(noisy=True).train()
    x, modality = tokens(20)
    available = torch.ones(20, 6, dtype=torch.bool)
    available[5:] = False
    y, plan = layer(x, modality, available)
    assert (y[5:] == 0).all()
    assert y[:5].abs().sum() > 0
    losses = [balance_loss([plan], ROLES, MODALITIES)[0].sum(), z_loss(plan), importance_loss(plan), load_loss(plan)]
    losses += [local_entropy(plan, 3), global_entropy(plan, 3)]
    sum(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    alone = Router(D, ROLES, MODALITIES)
    alone.load_state_dict({k: v for k, v in layer.router.state_dict().items() if k != "noise_ED"})
    few = alone(x[:5], modality[:5])
    masked = alone(x, modality, available)
    for loss in (z_loss, lambda p: local_entropy(p, 3), lambda p: global_entropy(p, 3), importance_loss):
        assert_close(loss(masked), loss(few))
    assert_close(balance_loss([masked], ROLES, MODALITIES), balance_loss([few], ROLES, MODALITIES))


# --- what decides together


def test_all_tokens_of_a_segment_share_the_decision_of_their_mean():
    layer = make()
    x, _ = tokens(12)
    segment = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    modality = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    _, plan = layer(x, modality, units=Units(segment, 3))
    for s in range(3):
        assert (plan.ids_TK[segment == s] == plan.ids_TK[segment == s][0]).all()
        mean = layer.router(x[segment == s].mean(dim=0, keepdim=True), torch.tensor([s]))
        assert_close(plan.logits_TE[segment == s][:1], mean.logits_TE)


def test_an_instruction_decides_for_all_tokens_of_its_sample():
    layer = make(bias=False, prior=0.0)
    x, modality = tokens(12)
    sample = torch.tensor([0] * 6 + [1] * 6)
    reads = torch.randn(2, D)
    _, plan = layer(x, modality, units=Units(sample, 2, reads))
    _, other = layer(x + torch.randn_like(x), modality, units=Units(sample, 2, reads))
    assert_close(plan.ids_TK, other.ids_TK)
    assert_close(plan.weights_TK, other.weights_TK)
    assert len({tuple(row) for row in plan.ids_TK.tolist()}) <= 2


# --- capacity


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 60), k=st.integers(1, 4), factor=st.sampled_from([0.3, 1.0, 1.25, 6.0]), seed=st.integers(0, 99)
)
def test_no_expert_takes_more_than_its_capacity_and_what_is_dropped_counts_nothing(n, k, factor, seed):
    layer = make(seed, experts_per_token=k, capacity_factor=factor).train()
    x, modality = tokens(n, seed)
    y, plan = layer(x, modality)
    capacity = math.ceil(k * n / 6 * factor)
    assert plan.counts_E.max() <= capacity
    assert (plan.weights_TK[plan.dropped_TK] == 0).all()
    assert_close(y, execute_loop(plan, x, layer.experts), rtol=1e-5, atol=1e-6)
    wanted = plan.ids_TK.flatten().bincount(minlength=6)
    lost = (wanted - capacity).clamp(min=0).sum()
    assert plan.dropped_TK.sum() == lost
    assert float(drop_rate(plan)) == pytest.approx(float(lost) / (n * k))
    assert plan.chosen_TK.all()


def test_there_is_no_capacity_at_inference():
    layer = make(capacity_factor=0.2).eval()
    x, modality = tokens(50)
    assert layer.router(x, modality).kept_TK is None
    with pytest.raises(ValueError, match=r"capacity_factor 1\.0 at inference"):
        layer.router(x, modality, capacity_factor=1.0)


# --- noise, in training, on the gate's copy alone


@pytest.mark.parametrize("gate", [{"jitter": 0.5}, {"noisy": True}])
def test_noise_changes_the_choice_in_training_only_and_never_what_experts_see(gate):
    layer = make(prior=0.0, **gate)
    x, modality = tokens(200)
    seen = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    layer.train()
    plans = [layer(x, modality)[1] for _ in range(2)]
    assert (plans[0].ids_TK != plans[1].ids_TK).any()
    rows = {tuple(row.tolist()) for row in x}
    assert all(tuple(row.tolist()) in rows for part in seen for row in part)
    layer.eval()
    assert_close(layer(x, modality)[1].logits_TE, layer(x, modality)[1].logits_TE, rtol=0, atol=0)


def test_the_load_loss_is_the_chance_of_being_chosen_under_new_noise():
    """Against a simulation: draw the noise of one expert anew many times, Shazeer et al. 2017, eq. 8."""
    layer = make(prior=0.0, noisy=True).train()
    x, modality = tokens(6)
    plan = layer.router(x, modality)
    draws, k = 20_000, 2
    chance = torch.zeros(6, 6)
    generator = torch.Generator().manual_seed(1)
    for e in range(6):
        noise = torch.randn(draws, 6, generator=generator)
        fresh = plan.noise.clean_TE[:, e] + noise * plan.noise.scale_TE[:, e]
        others = torch.cat([plan.logits_TE[:, :e], plan.logits_TE[:, e + 1 :]], dim=1)
        chance[:, e] = (fresh > others.topk(k, dim=1).values[:, k - 1]).float().mean(dim=0)
    load = chance.sum(dim=0)
    expected = load.var(unbiased=False) / load.mean() ** 2
    assert float(load_loss(plan).detach()) == pytest.approx(float(expected), rel=0.05, abs=2e-3)


def test_the_load_loss_without_noise_is_refused():
    layer = make()
    with pytest.raises(ValueError, match="noisy=True"):
        load_loss(layer.router(*tokens(4)))


def test_importance_is_the_squared_variation_of_summed_gates():
    plan = make().router(*tokens(40))
    gates = torch.zeros(40, 6).scatter(1, plan.ids_TK, plan.weights_TK)
    total = gates.sum(dim=0)
    assert_close(importance_loss(plan), total.var(unbiased=False) / total.mean() ** 2)


def test_entropies_per_modality_are_limoe_s():
    plan = make().router(*tokens(60))
    local, whole = [], []
    for m in range(3):
        p = plan.probabilities_TE[plan.modality_T == m]
        local.append(-(p * p.log()).sum(dim=-1).mean())
        mean = p.mean(dim=0)
        whole.append(-(mean * mean.log()).sum())
    assert_close(local_entropy(plan, 3), torch.stack(local).mean())
    assert_close(global_entropy(plan, 3), -torch.stack(whole).mean())
    assert_close(global_entropy(plan, 3, threshold=0.1), torch.tensor(0.0))


# --- experts choose


def test_experts_take_the_tokens_that_they_score_highest_each_the_same_number():
    layer = make(choice="expert").train()
    x, modality = tokens(30)
    y, plan = layer(x, modality)
    assert plan.counts_E.tolist() == [10] * 6
    for e in range(6):
        taken = plan.kept_TK[:, e]
        assert plan.probabilities_TE[taken, e].min() >= plan.probabilities_TE[~taken, e].max()
    assert_close(y, execute_loop(plan, x, layer.experts), rtol=1e-5, atol=1e-6)


def test_expert_choice_is_refused_at_inference_with_the_reason():
    layer = make(choice="expert").eval()
    with pytest.raises(ValueError, match="the rest of the batch"):
        layer(*tokens(5))


# --- other experts behind the same gate


def test_a_convolution_a_transformer_and_feed_forward_experts_share_one_gate():
    """Frames of 2 x 2 patches, sentences of unequal length and single states, against each expert run by hand."""
    kinds = {"vision": ConvolutionExpert, "arm": AttentionExpert}
    layer = make(kinds=kinds)
    segment = torch.tensor([0] * 4 + [1] * 4 + [2] * 3 + [3] * 5 + [4])
    modality = torch.tensor([0] * 8 + [1] * 8 + [2])
    x = torch.randn(17, D)
    y, plan = layer(x, modality, units=Units(segment, 5), segment_T=segment)
    expected = torch.zeros_like(x)
    for s in range(5):
        rows = (segment == s).nonzero().flatten()
        for e, w in zip(plan.ids_TK[rows[0]].tolist(), plan.weights_TK[rows[0]].tolist(), strict=True):
            expert = layer.experts[e]
            takes = getattr(expert, "takes_segments", False)
            expected[rows] += w * (expert(x[rows], segment[rows]) if takes else expert(x[rows]))
    assert_close(y, expected, rtol=1e-4, atol=1e-5)
    convolutions = [e for e, role in enumerate(ROLES) if role == "vision"]
    assert not torch.isin(plan.ids_TK[modality != 0], torch.tensor(convolutions)).any()
    y.sum().backward()


def test_an_expert_of_frames_sees_neighbours_and_a_row_expert_does_not():
    segment = torch.zeros(4, dtype=torch.int64)
    x, moved = torch.randn(4, D), torch.randn(D)
    for expert, sees in ((ConvolutionExpert(D, 8), True), (AttentionExpert(D, 8), True)):
        before, after = expert(x, segment), expert(torch.cat([x[:3], moved[None]]), segment)
        assert bool((before[0] - after[0]).abs().max() > 1e-6) == sees


def test_experts_of_frames_ask_for_the_frames():
    layer = make(kinds={"vision": ConvolutionExpert})
    with pytest.raises(ValueError, match="ConvolutionExpert takes whole segments"):
        layer(torch.randn(4, D), torch.zeros(4, dtype=torch.int64))


def test_a_shared_expert_runs_for_every_token():
    layer = make(shared=2)
    x, modality = tokens(9)
    y, plan = layer(x, modality)
    assert_close(y - execute(plan, x, layer.experts), layer.shared(x), rtol=1e-4, atol=1e-5)


def test_scaled_by_k_an_average_of_k_experts_is_the_sum_that_one_wide_network_makes():
    torch.manual_seed(0)
    layer = MoEFeedForward(D, 8, {"any": 2}, ("any",), shared=1, scale=2.0)
    with torch.no_grad():
        layer.router.weight_ED.zero_()  # so that both have the weight 1/2
    x = torch.randn(9, D)
    y, _ = layer(x, torch.zeros(9, dtype=torch.int64))
    assert_close(y, layer.experts[0](x) + layer.experts[1](x) + layer.shared(x), rtol=1e-4, atol=1e-5)


# --- what cannot be


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"experts_per_token": 7}, "experts_per_token is 7, expected 1 to 6"),
        ({"experts_per_token": 0}, "experts_per_token is 0"),
        ({"capacity_factor": 0.0}, "capacity_factor is 0.0, expected more than 0"),
        ({"jitter": 1.0}, "jitter is 1.0"),
        ({"kind": "typed"}, "typed routing has no gate to choose among 3 experts of role 'vision'"),
    ],
)
def test_a_gate_that_cannot_be_is_refused_in_one_line(gate, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make(**gate)
    assert "\n" not in str(refusal.value)


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="unknown expert role 'ears': expected one of vision, arm, grasp"):
        make(kinds={"ears": ConvolutionExpert})


def test_one_hot_of_modalities_is_what_the_bias_is_added_by():
    layer = make(prior=2.0)
    x, modality = tokens(7)
    plan = layer.router(x, modality)
    own = torch.tensor([[role == m for role in ROLES] for m in MODALITIES]).float()
    expected = x @ layer.router.weight_ED.T + 2.0 * F.one_hot(modality, 3).float() @ own
    assert_close(plan.logits_TE, expected)
