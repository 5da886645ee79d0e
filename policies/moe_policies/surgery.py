"""Makes one policy from another: a mixture from a dense one (sparse upcycling), a small dense one out of a mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe_policies.config import PolicyConfig
from moe_robot.moe import Activation, ExpertBank, MoEFeedForward, is_gated
from moe_robot.types import Observation, UserError

if TYPE_CHECKING:
    from moe_policies.policy import MultimodalPolicy


@torch.no_grad()
def upcycle(dense: MultimodalPolicy, **overrides: Any) -> MultimodalPolicy:
    """Sparse upcycling (Komatsuzaki et al. 2022): every expert starts as its layer's dense network, the gate fresh.

    The weights of a token's K >= 2 experts sum to 1, so the mixture's output equals the dense policy's until the first
    step of training. Everything else, normalisation and text encoder with it, is taken over.

    Args:
        dense: a trained ``dense-active`` or ``dense-total`` policy.
        overrides: fields of :class:`PolicyConfig` that shape gate, experts and losses, for example ``experts``.

    Raises:
        UserError: for a policy that is not dense, for K = 1 or shared experts (their output would differ), and for
            overrides that do not fit the trained weights.
    """
    old = dense.config
    if old.feed_forward == "moe":
        raise UserError(f"the {old.preset!r} policy is a mixture already: expected a dense policy to upcycle")
    changes = {"preset": "moe", "feed_forward": "moe", "hidden": old.dense_hidden, **overrides}
    config = PolicyConfig.from_json({**old.to_json(), **changes})
    if config.experts_per_token < 2 or config.shared_experts:
        raise UserError(
            "upcycling keeps the dense policy's output where a token's weights sum to 1: expected experts_per_token "
            f"of at least 2 and no shared experts, got {config.experts_per_token} and {config.shared_experts}"
        )
    sparse = _like(dense, config)
    state = {**sparse.state_dict(), **_common(dense, sparse)}
    for name, module in sparse.named_modules():
        if isinstance(module, MoEFeedForward):
            ffn = dense.get_submodule(name)
            for e in range(len(module.experts)):
                state |= {f"{name}.experts.{e}.{key}": value.clone() for key, value in ffn.state_dict().items()}
    try:
        sparse.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"these settings do not fit the dense policy's weights: {reason}") from error
    return sparse


@torch.no_grad()
def extract(policy: MultimodalPolicy, sentence: str) -> MultimodalPolicy:
    """Cut out what one instruction uses: a small dense policy whose actions equal the full one's on that sentence.

    With gates that decide by the instruction, every token of every picture goes to the same K experts of a layer with
    the same weights. ``sum_k w_k SwiGLU_k(x)`` is one SwiGLU network of K times the hidden width, so what is cut out is
    a ``dense-active`` policy that needs neither gate nor the other experts. It follows no other sentence.

    Raises:
        UserError: unless the policy's ``routing_unit`` is "instruction".
    """
    old = policy.config
    if old.feed_forward != "moe" or old.routing_unit != "instruction":
        raise UserError(
            f"the {old.preset!r} policy decides by {old.routing_unit}, so any expert may be needed at any time: "
            "expected one trained with routing_unit=instruction"
        )
    if any(kind != "mlp" for kind in old.expert_kinds.values()):
        raise UserError("experts that take whole frames cannot be merged: expected all expert_kinds mlp")
    network = policy.network
    policy.eval()
    policy.predict_action_chunk(_blank(policy, sentence))
    chosen = [plans[0] for plans in policy.latest_plans]
    config = dataclasses.replace(old, preset="dense-active", feed_forward="dense-active", only_instruction=sentence)
    small = _like(policy, config)
    state = {**small.state_dict(), **_common(policy, small)}
    layers = [(name, module) for name, module in policy.named_modules() if isinstance(module, MoEFeedForward)]
    by_order = sorted(layers, key=lambda item: network.moe_layers.index(item[1]))
    for (name, layer), plan in zip(by_order, chosen, strict=True):
        assert isinstance(layer.experts, ExpertBank)
        inner_EPD, outer_EDH = layer.experts.stacked()
        parts = [(inner_EPD[e], w * outer_EDH[e]) for e, w in zip(plan.ids_TK[0], plan.weights_TK[0], strict=True)]
        if layer.shared is not None:
            parts.append((layer.shared.gate_up.weight, layer.shared.out.weight))
        state |= {f"{name}.{key}": value for key, value in _merged(parts, layer.experts.activation).items()}
    small.load_state_dict(state)
    return small.eval()


def _merged(parts: list[tuple[Tensor, Tensor]], activation: Activation) -> dict[str, Tensor]:
    """One network that computes the sum of several, from the inner and the (weighted) outer matrix of each."""
    inner, outer = zip(*parts, strict=True)
    if is_gated(activation):
        gates, ups = zip(*(matrix.chunk(2) for matrix in inner), strict=True)
        inner = (*gates, *ups)
    return {"gate_up.weight": torch.cat(inner), "out.weight": torch.cat(outer, dim=1)}


def _like(policy: MultimodalPolicy, config: PolicyConfig) -> MultimodalPolicy:
    """A fresh policy of another shape with the same senses and text encoder."""
    encoder = None if policy.network.text is None else policy.network.text.encoder
    return type(policy)(config, policy.features, None, encoder).to(policy.device)  # type: ignore[arg-type]


def _common(source: MultimodalPolicy, target: MultimodalPolicy) -> Mapping[str, Tensor]:
    """The source's weights that the target has under the same name and shape."""
    wanted = target.state_dict()
    return {k: v for k, v in source.state_dict().items() if k in wanted and wanted[k].shape == v.shape}


def _blank(policy: MultimodalPolicy, sentence: str) -> dict[str, Any]:
    """A black picture and a zero state with the sentence: what such gates decide by is the sentence alone."""
    import numpy as np

    images = {name: np.zeros((*size, 3), np.uint8) for name, size in policy.features.cameras.items()}
    state = np.zeros(len(policy.features.state_names), np.float32)
    return policy.senses.batch_of_one(Observation(images, state, sentence))
