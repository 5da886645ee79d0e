"""The presets are what their papers define, held against a few lines written from the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from moe_policies.config import MODALITIES
from moe_policies.gate_losses import begin_gate_losses
from moe_policies.heads import MixtureHead
from moe_policies.presets import PRESETS, preset
from moe_policies.trunk import FeedForward, Gating, Tokens

T, D, E = 96, 32, 8


def feed_forward(name: str, layer: int = 0, **overrides) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(preset(name, width=D, hidden=24, **overrides), layer)


def tokens(seed: int = 0) -> tuple[Tokens, torch.Tensor]:
    """One sample of T tokens of all modalities, and what the layer's norm makes of them."""
    x = torch.randn(1, T, D, generator=torch.Generator().manual_seed(seed))
    parts = [Tokens.of(part, MODALITIES[i]) for i, part in enumerate(x.chunk(4, dim=1))]
    return Tokens.concatenate(parts), F.rms_norm(x[0], (D,), eps=1e-6)


def test_switch_is_the_best_expert_times_its_probability():
    """y = p_i(x) E_i(x), p = softmax(W x), E_i = W_out relu(W_in x); Fedus et al. 2021, eq. 1 and 2."""
    ffn = feed_forward("switch").eval()
    given, h = tokens()
    moe = ffn.layer
    p = (h @ moe.router.weight_ED.T).softmax(dim=-1)
    best = p.argmax(dim=-1)
    expected = torch.stack(
        [
            p[t, i] * (moe.experts[i].out.weight @ (moe.experts[i].gate_up.weight @ h[t]).relu())
            for t, i in enumerate(best.tolist())
        ]
    )
    y, plan = ffn(given, Gating())
    assert_close(y[0], expected, rtol=1e-4, atol=1e-5)
    f = F.one_hot(best, E).float().mean(dim=0)
    loss = begin_gate_losses(preset("switch"), moe.router.roles, [plan])()["balance_loss"]
    assert_close(loss, E * (f * p.mean(dim=0)).sum())  # eq. 4 without alpha


def test_switch_drops_what_is_beyond_tokens_over_experts_times_the_factor():
    """Expert capacity = tokens / experts * capacity factor, eq. 3; in training only."""
    ffn = feed_forward("switch", gate_jitter=0.0).train()
    with torch.no_grad():
        ffn.layer.router.weight_ED.zero_()
        ffn.layer.router.weight_ED[0] = 1e-4  # about half of all tokens prefer expert 0
    given, _ = tokens()
    y, plan = ffn(given, Gating())
    capacity = math.ceil(T / E * 1.25)
    assert plan.counts_E.max() == capacity
    dropped = plan.dropped_TK.any(dim=1)
    assert dropped.sum() == (plan.ids_TK.flatten().bincount(minlength=E) - capacity).clamp(min=0).sum() > 0
    assert (y[0][dropped] == 0).all()
    for e in range(E):  # the kept are those with the highest probability
        mine = (plan.ids_TK[:, 0] == e).nonzero().flatten()
        score = plan.probabilities_TE[mine, e]
        kept = plan.kept_TK[mine, 0]
        assert not kept.any() or kept.all() or score[kept].min() >= score[~kept].max()
    assert ffn.eval()(given, Gating())[1].dropped_TK is None


def test_glam_is_the_two_best_gelu_gated_experts_in_every_other_layer():
    """y = sum over the top two of g_i E_i(x), g renormalised; E_i = W_out (gelu(W_g x) * W_u x); Du et al. 2021."""
    config = preset("glam")
    assert [config.is_sparse(layer) for layer in range(4)] == [True, False, True, False]
    ffn = feed_forward("glam").eval()
    given, h = tokens()
    moe = ffn.layer
    p = (h @ moe.router.weight_ED.T).softmax(dim=-1)
    rows = []
    for t in range(T):
        two = p[t].topk(2).indices.tolist()
        g = p[t][two] / p[t][two].sum()
        outputs = []
        for i in two:
            gate, up = (moe.experts[i].gate_up.weight @ h[t]).chunk(2)
            outputs.append(moe.experts[i].out.weight @ (F.gelu(gate) * up))
        rows.append(g[0] * outputs[0] + g[1] * outputs[1])
    assert_close(ffn(given, Gating())[0][0], torch.stack(rows), rtol=1e-4, atol=1e-5)
    dense = feed_forward("glam", layer=1)
    assert dense.layer.out.weight.shape == (D, 2 * 24)


def test_jacobs_1991_runs_all_experts_and_blends_them_by_the_gate():
    """y = sum_i p_i f_i(x) over all experts; Jacobs et al. 1991."""
    ffn = feed_forward("jacobs1991").eval()
    given, h = tokens()
    moe = ffn.layer
    p = (h @ moe.router.weight_ED.T).softmax(dim=-1)
    expected = sum(p[:, i : i + 1] * moe.experts[i](h) for i in range(E))
    y, plan = ffn(given, Gating())
    assert_close(y[0], expected, rtol=1e-4, atol=1e-5)
    assert plan.counts_E.tolist() == [T] * E


def test_jacobs_1991_experts_compete_for_a_case():
    """-log sum_i p_i exp(-1/2 |d - o_i|^2), eq. 1.3, over the steps that are no padding; acting takes the mean."""
    torch.manual_seed(0)
    head = MixtureHead(D, chunk=3, groups=[[0, 1], [2]], n_experts=4)
    context, target = torch.randn(5, 2, D), torch.randn(5, 3, 3)
    pad = torch.zeros(5, 3, dtype=torch.bool)
    pad[1, 2] = pad[2, 1:] = True
    h = F.rms_norm(context, (D,), head.norm.weight, 1e-6).flatten(1)
    p, o = head.gate(h).softmax(dim=-1), head.experts(h).view(5, 4, 3, 3)
    error = 0.0
    for b in range(5):
        keep = ~pad[b]
        fits = [p[b, i] * torch.exp(-0.5 * (target[b] - o[b, i])[keep].square().sum()) for i in range(4)]
        error = error - torch.log(sum(fits))
    weight = (~pad).float() / (~pad).sum()
    assert_close(head.loss(context, target, weight), error / (~pad).sum(), rtol=1e-4, atol=1e-5)
    assert_close(head.sample(context), (p[:, :, None, None] * o).sum(dim=1))


def test_shared_is_one_expert_that_always_runs_beside_the_chosen_one():
    """h = sum of K_s shared experts + sum over the top K - K_s of g_i E_i(x); Dai et al. 2024, eq. 9 to 11."""
    ffn = feed_forward("shared").eval()
    given, h = tokens()
    moe = ffn.layer
    p = (h @ moe.router.weight_ED.T + moe.router.bias_ME[given.modality_N]).softmax(dim=-1)
    best = p.argmax(dim=-1)
    expected = moe.shared(h) + torch.stack([p[t, i] * moe.experts[i](h[t : t + 1])[0] for t, i in enumerate(best)])
    assert_close(ffn(given, Gating())[0][0], expected, rtol=1e-4, atol=1e-5)


def test_typed_sends_every_modality_to_its_own_two_experts_half_each_and_learns_no_gate():
    ffn = feed_forward("typed")
    given, h = tokens()
    y, plan = ffn(given, Gating())
    for t, m in enumerate(given.modality_N.tolist()):
        assert sorted(plan.ids_TK[t].tolist()) == [2 * m, 2 * m + 1]
        expected = sum(0.5 * ffn.layer.experts[e](h[t : t + 1])[0] for e in (2 * m, 2 * m + 1))
        assert_close(y[0, t], expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in ffn.layer.router.parameters())


def test_random_never_changes_its_gate():
    ffn = feed_forward("random")
    assert not any(p.requires_grad for p in ffn.layer.router.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_in_one_pass_what_ran(name):
    ffn = feed_forward(name)
    given, _ = tokens()
    y, plan = ffn.eval()(given, Gating())
    assert y.shape == (1, T, D)
    assert (plan is None) == name.startswith("dense")
