"""What a plan says about the gate, per modality: routes, first choices, losses to capacity, tokens, entropy.

Sums, not means, so that those of many plans can be added and divided once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_robot.moe.losses import routes_of
from moe_robot.moe.plan import RoutingPlan


def count_routes(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many routes tokens of each modality chose to each expert, before any capacity."""
    return routes_of(plan, n_modalities).long()


def count_first(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many tokens of each modality chose each expert before all others."""
    first_T1 = plan.chosen_TK[:, :1]
    return _count(plan, plan.ids_TK[:, :1], first_T1, n_modalities)


def count_dropped(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many of the routes were lost to capacity; zeros when dropless."""
    if plan.dropped_TK is None:
        return torch.zeros(n_modalities, plan.logits_TE.shape[1], dtype=torch.int64, device=plan.ids_TK.device)
    return _count(plan, plan.ids_TK, plan.dropped_TK, n_modalities)


def drop_rate(plan: RoutingPlan) -> Tensor:
    """Share of the chosen routes that a capacity dropped; 0 without one."""
    if plan.dropped_TK is None:
        return plan.weights_TK.new_zeros(())
    return plan.dropped_TK.sum() / plan.chosen_TK.sum().clamp(min=1)


def count_tokens(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M,): tokens that the gate saw."""
    return torch.bincount(plan.modality_T, minlength=n_modalities)


def sum_entropy(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """float64 (M,): the gate's entropy ``-sum p log p`` in nats, summed over the tokens of each modality.

    An expert that is not available has probability 0 and adds nothing.
    """
    entropy_T = torch.special.entr(plan.probabilities_TE.detach().double()).sum(dim=-1)
    member_TM = torch.nn.functional.one_hot(plan.modality_T, n_modalities).double()
    return entropy_T @ member_TM  # a product, not index_add: the same bits on every run


def _count(plan: RoutingPlan, ids_TK: Tensor, counted_TK: Tensor, n_modalities: int) -> Tensor:
    n_experts = plan.logits_TE.shape[1]
    cells = (plan.modality_T.unsqueeze(1) * n_experts + ids_TK)[counted_TK]
    return torch.bincount(cells, minlength=n_modalities * n_experts).view(n_modalities, n_experts)
