"""Makes one network from another: a mixture from a dense one (sparse upcycling), a small dense one out of a mixture.

A configuration first, then the weights for a fresh network of that shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_policies.config import PolicyConfig
from moe_policies.network import Network
from moe_robot.moe import Activation, ExpertBank, MoEFeedForward, RoutingPlan, is_gated
from moe_robot.types import UserError


def upcycled_config(old: PolicyConfig, overrides: Mapping[str, Any]) -> PolicyConfig:
    """The shape of a mixture whose experts are a dense policy's networks.

    Raises:
        UserError: for a policy that is not dense, and for K = 1 or shared experts: then the output would differ.
    """
    if old.feed_forward == "moe":
        raise UserError(f"the {old.preset!r} policy is a mixture already: expected a dense policy to upcycle")
    changes = {"preset": "moe", "feed_forward": "moe", "hidden": old.dense_hidden, **overrides}
    config = PolicyConfig.from_json({**old.to_json(), **changes})
    if config.experts_per_token < 2 or config.shared_experts:
        raise UserError(
            "upcycling keeps the dense policy's output where a token's weights sum to 1: expected experts_per_token "
            f"of at least 2 and no shared experts, got {config.experts_per_token} and {config.shared_experts}"
        )
    return config


@torch.no_grad()
def fill_from_dense(sparse: Network, dense: Network) -> None:
    """Sparse upcycling (Komatsuzaki et al. 2022): every expert becomes its layer's dense network, the gate stays fresh.

    The weights of a token's K >= 2 experts sum to 1, so the mixture's output equals the dense network's until the first
    step of training.

    Raises:
        UserError: for a mixture of another shape.
    """
    state = _with_common(sparse, dense)
    for name, module in sparse.named_modules():
        if isinstance(module, MoEFeedForward):
            of_expert = dense.get_submodule(name).state_dict()
            of_expert["out.weight"] = of_expert["out.weight"] / module.scale
            for e in range(len(module.experts)):
                state |= {f"{name}.experts.{e}.{key}": value.clone() for key, value in of_expert.items()}
    try:
        sparse.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"these settings do not fit the dense policy's weights: {reason}") from error


@torch.no_grad()
def fill_common(target: Network, source: Network) -> None:
    """Give a network the weights of another wherever both have one of the same name and shape."""
    target.load_state_dict(_with_common(target, source))


def extracted_config(old: PolicyConfig, sentence: str) -> PolicyConfig:
    """The shape of the small dense policy that one instruction needs.

    Raises:
        UserError: unless gates decide by the instruction, and experts are plain feed-forward networks.
    """
    if old.feed_forward != "moe" or old.routing_unit != "instruction":
        raise UserError(
            f"the {old.preset!r} policy decides by {old.routing_unit}, so any expert may be needed at any time: "
            "expected one trained with routing_unit=instruction"
        )
    if any(kind != "mlp" for kind in old.expert_kinds.values()):
        raise UserError("experts that take whole frames cannot be merged: expected all expert_kinds mlp")
    return dataclasses.replace(old, preset="dense-active", feed_forward="dense-active", only_instruction=sentence)


@torch.no_grad()
def fill_from_choice(small: Network, full: Network, plans: Sequence[Sequence[RoutingPlan]]) -> None:
    """Put into a dense network what the full one does for the instruction that its latest ``plans`` were made for.

    Every token of every picture then goes to the same K experts of a layer with the same weights, and
    ``sum_k w_k SwiGLU_k(x)`` is one SwiGLU network of K times the hidden width.
    """
    state = _with_common(small, full)
    names = {module: name for name, module in full.named_modules() if isinstance(module, MoEFeedForward)}
    for layer, (plan, *_) in zip(full.moe_layers, plans, strict=True):
        assert isinstance(layer.experts, ExpertBank)
        inner_EPD, outer_EDH = layer.experts.stacked()
        weights_K = plan.weights_TK[0] * layer.scale
        parts = [(inner_EPD[e], w * outer_EDH[e]) for e, w in zip(plan.ids_TK[0], weights_K, strict=True)]
        if layer.shared is not None:
            parts.append((layer.shared.gate_up.weight, layer.shared.out.weight))
        merged = _merged(parts, layer.experts.activation)
        state |= {f"{names[layer]}.{key}": value for key, value in merged.items()}
    small.load_state_dict(state)


def _merged(parts: list[tuple[Tensor, Tensor]], activation: Activation) -> dict[str, Tensor]:
    """One network that computes the sum of several, from the inner and the (weighted) outer matrix of each."""
    inner, outer = zip(*parts, strict=True)
    if is_gated(activation):
        gates, ups = zip(*(matrix.chunk(2) for matrix in inner), strict=True)
        inner = (*gates, *ups)
    return {"gate_up.weight": torch.cat(inner), "out.weight": torch.cat(outer, dim=1)}


def _with_common(target: Network, source: Network) -> dict[str, Tensor]:
    """The target's weights, with the source's where it has one of the same name and shape."""
    wanted = target.state_dict()
    found = {k: v for k, v in source.state_dict().items() if k in wanted and wanted[k].shape == v.shape}
    return {**wanted, **found}
