"""Carries tokens to their experts and back according to a plan.

``execute`` is what runs; ``execute_loop`` is the plain text-book loop that the tests hold it against.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_robot.moe.plan import RoutingPlan

Experts = Sequence[nn.Module] | nn.ModuleList


def execute(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """Gather rows in expert order, run each expert once on its contiguous rows, and sum each token's K outputs.

    Experts are separate modules, never slices of one 3-D tensor: the backward of a slice fills the whole bank with
    zeros, and an expert without rows must get no gradient at all.
    """
    token_R = plan.order_R // plan.experts_per_token
    rows_RD = x_TD.index_select(0, token_R)
    counts = plan.counts_E.tolist()
    segments = [None] * len(counts) if segment_T is None else segment_T.index_select(0, token_R).split(counts)
    outputs = [
        _run(expert, part, segment)
        for expert, part, segment in zip(experts, rows_RD.split(counts), segments, strict=True)
        if part.shape[0]
    ]
    return combine(plan, torch.cat(outputs) if outputs else rows_RD)


def _run(expert: nn.Module, rows_RD: Tensor, segment_R: Tensor | None) -> Tensor:
    if not getattr(expert, "takes_segments", False):
        return expert(rows_RD)
    if segment_R is None:
        raise ValueError(f"{type(expert).__name__} takes whole segments: expected segment_T with the tokens")
    return expert(rows_RD, segment_R)


def combine(plan: RoutingPlan, y_RD: Tensor) -> Tensor:
    """Weighted sum of each token's K expert outputs. (R, D) in expert order -> (T, D) in token order."""
    if plan.kept_TK is not None:
        y_RD = torch.cat([y_RD, y_RD.new_zeros(1, y_RD.shape[1])])  # what does not run points at this row
    y_TKD = y_RD.index_select(0, plan.inverse_R).view(*plan.ids_TK.shape, y_RD.shape[1])
    return (y_TKD * plan.weights_TK.unsqueeze(-1).to(y_TKD.dtype)).sum(
        dim=1
    )  # a sum, not index_add: the same bits every run


def execute_loop(plan: RoutingPlan, x_TD: Tensor, experts: Experts) -> Tensor:
    """The definition, token by token: y_t = sum over k of weight[t, k] * expert[id[t, k]](x_t)."""
    rows = []
    for t in range(x_TD.shape[0]):
        y_D = torch.zeros_like(x_TD[t])
        for k in range(plan.experts_per_token):
            if plan.kept_TK is None or bool(plan.kept_TK[t, k]):
                expert = experts[int(plan.ids_TK[t, k])]
                y_D = y_D + plan.weights_TK[t, k] * expert(x_TD[t : t + 1])[0]
        rows.append(y_D)
    return torch.stack(rows)
