"""Counts of routes per modality and expert, read from a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_robot.moe.plan import RoutingPlan


def count_routes(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many routes tokens of each modality made to each expert."""
    n_experts = plan.logits_TE.shape[1]
    cell_TK = plan.modality_T.unsqueeze(1) * n_experts + plan.ids_TK
    return torch.bincount(cell_TK.reshape(-1), minlength=n_modalities * n_experts).view(n_modalities, n_experts)
