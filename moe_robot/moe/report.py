"""What a plan says about the gate, per modality: routes, first choices, losses to capacity, tokens, entropy.

Sums, not means, so that those of many plans can be added and divided once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_robot.moe.plan import RoutingPlan


def count_routes(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many routes tokens of each modality made to each expert, those that found no place included."""
    return _count(plan, plan.ids_TK, n_modalities)


def count_first(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many tokens of each modality chose each expert before all others."""
    return _count(plan, plan.ids_TK[:, :1], n_modalities)


def count_dropped(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many of the routes were lost to capacity; zeros when dropless."""
    if plan.dropped_TK is None:
        return torch.zeros(n_modalities, plan.logits_TE.shape[1], dtype=torch.int64, device=plan.ids_TK.device)
    return _count(plan, plan.ids_TK, n_modalities, plan.dropped_TK)


def count_tokens(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M,): tokens that the gate saw."""
    return torch.bincount(plan.modality_T, minlength=n_modalities)


def sum_entropy(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """float64 (M,): the gate's entropy ``-sum p log p`` in nats, summed over the tokens of each modality.

    An expert that is switched off has probability 0 and adds nothing.
    """
    entropy_T = torch.special.entr(plan.probabilities_TE.detach().double()).sum(dim=-1)
    member_TM = torch.nn.functional.one_hot(plan.modality_T, n_modalities).double()
    return entropy_T @ member_TM  # a product, not index_add: the same bits on every run


def _count(plan: RoutingPlan, ids_TK: Tensor, n_modalities: int, chosen_TK: Tensor | None = None) -> Tensor:
    n_experts = plan.logits_TE.shape[1]
    cell_TK = plan.modality_T.unsqueeze(1) * n_experts + ids_TK
    cells = cell_TK.reshape(-1) if chosen_TK is None else cell_TK[chosen_TK]
    return torch.bincount(cells, minlength=n_modalities * n_experts).view(n_modalities, n_experts)
