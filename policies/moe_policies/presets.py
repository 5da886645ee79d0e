"""The presets: one policy, several feed-forward layers, so that a comparison changes one thing only.

All wake the same number of feed-forward FLOPs per token, except ``jacobs1991`` and ``dense-total``, which run
everything.
"""

from __future__ import annotations

from typing import Any

from moe_policies.config import PolicyConfig

PRESETS: dict[str, dict[str, Any]] = {
    "moe": {},
    # Switch Transformer (Fedus, Zoph, Shazeer 2021), section 2: p(x) = softmax(W x); y = p_i(x) E_i(x) for the one i
    # with the highest p_i (eq. 1, 2); capacity = tokens / experts * factor (eq. 3), factor 1.25; loss = 0.01 * E * sum
    # f_i P_i over all tokens and experts (eq. 4); input jitter 0.01; ReLU experts. No modality enters the gate.
    # 384 hidden units in two matrices cost what two SwiGLU experts of 128 do.
    "switch": {
        "experts_per_token": 1, "hidden": 384, "activation": "relu", "gate_prior": 0.0, "gate_bias": False,
        "gate_jitter": 0.01, "capacity_factor": 1.25, "balance_groups": "all", "balance_weight": 0.01,
    },
    # GLaM (Du et al. 2021), section 4: the feed-forward of every other layer is a mixture; y = sum over the best two of
    # g_i E_i(x), g renormalised over the two; GELU-gated experts; GShard's balance loss, weight 0.01, over all experts.
    "glam": {
        "activation": "geglu", "moe_every": 2, "gate_prior": 0.0, "gate_bias": False, "balance_groups": "all",
        "balance_weight": 0.01,
    },
    # DeepSeekMoE (Dai et al. 2024), eq. 9 to 11: K_s always-on experts, the gate chooses K - K_s of the others.
    "shared": {"experts_per_token": 1, "shared_experts": 1},
    # Adaptive mixtures of local experts (Jacobs, Jordan, Nowlan, Hinton 1991): all experts run, y = sum p_i f_i(x) with
    # p = softmax(W x); the action experts compete, error -log sum_i p_i exp(-|d - o_i|^2 / 2) (eq. 1.3).
    "jacobs1991": {
        "experts_per_token": 8, "gate_prior": 0.0, "gate_bias": False, "balance_weight": 0.0, "head": "mixture1991",
    },
    # Hard-wired: two experts per modality, both always, half each; as pi0 and others wire their experts.
    "typed": {
        "experts": {"vision": 2, "arm": 2, "grasp": 2, "language": 2}, "gate": "typed", "balance_weight": 0.0,
    },
    # The same experts behind a gate that never learns: a control for what learning to route is worth.
    "random": {"gate": "random", "gate_prior": 0.0, "balance_weight": 0.0},
    # One dense network with the FLOPs of the two experts that a token wakes.
    "dense-active": {"feed_forward": "dense-active"},
    # One dense network with the parameters of all experts.
    "dense-total": {"feed_forward": "dense-total"},
}  # fmt: skip


def preset(name: str, **overrides: Any) -> PolicyConfig:
    """The configuration of a preset, with some fields overridden."""
    return PolicyConfig.from_json({"preset": name, **PRESETS[name], **overrides})
