"""The layers that ``moe-robot bench moe`` measures side by side: ours, the dense limit, the plain loop, and peers.

Each maker gives a module and a function tokens (T, D) -> tokens (T, D); all have the same D, H, E and K, SwiGLU experts
and their own router, except where the comment says otherwise.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe_robot.moe import ExpertBank, FeedForwardExpert, GateConfig, MoEFeedForward

SEPARATE, STACKED, LIMIT = "moe_robot separate", "moe_robot stacked", "dense limit"
BLOCK = 512


@dataclass(frozen=True)
class Shape:
    """What is measured: token width, hidden width of an expert, experts, experts per token."""

    width: int
    hidden: int
    experts: int
    experts_per_token: int


@dataclass(frozen=True)
class Contender:
    """A layer to measure: its module, how to call it, and the bytes that it takes beyond its weights for T tokens."""

    module: nn.Module
    call: Callable[[Tensor], Tensor]
    extra_bytes: Callable[[int], float] = lambda n_tokens: 0.0


def contenders(shape: Shape) -> tuple[dict[str, Contender], dict[str, str]]:
    """Name -> layer, and name -> why it cannot be measured here."""
    found = {SEPARATE: _ours(shape, "separate"), STACKED: _ours(shape, "stacked"), LIMIT: _limit(shape)}
    found["plain loop"] = _plain_loop(shape)
    missing = {}
    for kind in ("eager", "batched_mm", "grouped_mm"):
        try:
            found[f"transformers {kind}"] = _transformers(shape, kind)
        except (ImportError, AttributeError, TypeError) as error:
            missing[f"transformers {kind}"] = f"not measured: this version of transformers has no such layer ({error})"
    try:
        found["st-moe-pytorch"] = _st_moe(shape)
    except ImportError as error:
        missing["st-moe-pytorch"] = f"not installed ({error})"
    return found, missing


def _ours(shape: Shape, storage: Any) -> Contender:
    gate = GateConfig(experts_per_token=shape.experts_per_token)
    layer = MoEFeedForward(shape.width, shape.hidden, {"any": shape.experts}, ("any",), gate)
    assert isinstance(layer.experts, ExpertBank)
    layer.experts.store_as(storage)
    kinds: dict[int, Tensor] = {}

    def call(x_TD: Tensor) -> Tensor:
        n = len(x_TD)
        if n not in kinds:  # the kinds of the tokens are input as the tokens are: made once
            kinds[n] = torch.zeros(n, dtype=torch.int64, device=x_TD.device)
        return layer(x_TD, kinds[n])[0]

    return Contender(layer, call)


def _limit(shape: Shape) -> Contender:
    """One dense SwiGLU with the hidden units that a token wakes; in blocks on a CPU, whose caches are small."""
    dense = FeedForwardExpert(shape.width, shape.experts_per_token * shape.hidden)

    def call(x_TD: Tensor) -> Tensor:
        if x_TD.device.type != "cpu" or len(x_TD) <= BLOCK:
            return dense(x_TD)
        return torch.cat([dense(rows) for rows in x_TD.split(BLOCK)])

    return Contender(dense, call)


class PlainLoop(nn.Module):
    """What one writes first: for each expert, find its tokens, run them, add the result in place."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.experts, bias=False)
        self.experts = nn.ModuleList(FeedForwardExpert(shape.width, shape.hidden) for _ in range(shape.experts))
        self.k = shape.experts_per_token

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        weights_TK, ids_TK = self.gate(x_TD).float().softmax(dim=-1).topk(self.k, dim=-1)
        weights_TK = (weights_TK / weights_TK.sum(dim=-1, keepdim=True)).to(x_TD.dtype)
        y_TD = torch.zeros_like(x_TD)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(ids_TK == e)
            y_TD.index_add_(0, token, expert(x_TD.index_select(0, token)) * weights_TK[token, slot].unsqueeze(-1))
        return y_TD


def _plain_loop(shape: Shape) -> Contender:
    loop = PlainLoop(shape)
    return Contender(loop, loop)


def _transformers(shape: Shape, kind: str) -> Contender:
    """Mixtral's block with one of the library's ways to run experts."""
    mixtral = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    config = mixtral.MixtralConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
    )
    config._experts_implementation = kind
    block = mixtral.MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=shape.width**-0.5)
    gathered = 4.0 * shape.experts_per_token * 3 * shape.width * shape.hidden * (2 if kind == "batched_mm" else 0)
    return Contender(block, lambda x_TD: block(x_TD.unsqueeze(0)).squeeze(0), lambda n_tokens: gathered * n_tokens)


def _st_moe(shape: Shape) -> Contender:
    """GEGLU experts of the same hidden width. It drops what exceeds its capacity, so it may do less work than asked."""
    package = importlib.import_module("st_moe_pytorch")
    layer = package.MoE(
        dim=shape.width,
        num_experts=shape.experts,
        expert_hidden_mult=1.5 * shape.hidden / shape.width,  # it takes two thirds of this
        gating_top_n=max(2, shape.experts_per_token),
    )
    # its one-hot dispatch and combine tensors are T x E x capacity, capacity about 2 T / E in evaluation
    return Contender(layer, lambda x_TD: layer(x_TD.unsqueeze(0))[0].squeeze(0), lambda n_tokens: 4 * 8.0 * n_tokens**2)
