"""Carries tokens to their experts and back according to a plan. Dropless: every route runs.

``execute_sorted`` is what runs; ``execute_loop`` is the plain text-book loop that the tests hold it against.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_robot.moe.plan import RoutingPlan


def execute_sorted(plan: RoutingPlan, x_TD: Tensor, experts: Sequence[nn.Module] | nn.ModuleList) -> Tensor:
    """Gather rows in expert order, run each expert once on its contiguous rows, and sum each token's K outputs.

    Experts are separate modules, never slices of one 3-D tensor: the backward of a slice fills the whole bank with
    zeros, and an expert without rows must get no gradient at all.
    """
    k = plan.experts_per_token
    rows_RD = x_TD.index_select(0, plan.order_R // k)
    outputs = [
        expert(part)
        for expert, part in zip(experts, rows_RD.split(plan.counts_E.tolist()), strict=True)
        if part.shape[0]
    ]
    return combine(plan, torch.cat(outputs))


def combine(plan: RoutingPlan, y_RD: Tensor) -> Tensor:
    """Weighted sum of each token's K expert outputs. (R, D) in expert order -> (T, D) in token order."""
    y_TKD = y_RD.index_select(0, plan.inverse_R).view(*plan.ids_TK.shape, -1)
    return (y_TKD * plan.weights_TK.unsqueeze(-1).to(y_TKD.dtype)).sum(
        dim=1
    )  # a sum, not index_add: the same bits every run


def execute_loop(plan: RoutingPlan, x_TD: Tensor, experts: Sequence[nn.Module] | nn.ModuleList) -> Tensor:
    """The definition, token by token: y_t = sum over k of weight[t, k] * expert[id[t, k]](x_t)."""
    rows = []
    for t in range(x_TD.shape[0]):
        y_D = torch.zeros_like(x_TD[t])
        for k in range(plan.experts_per_token):
            expert = experts[int(plan.ids_TK[t, k])]
            y_D = y_D + plan.weights_TK[t, k] * expert(x_TD[t : t + 1])[0]
        rows.append(y_D)
    return torch.stack(rows)
