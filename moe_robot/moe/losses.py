"""Auxiliary losses of the gate, pure functions of a plan. They are returned, never kept anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_robot.moe.plan import RoutingPlan


def balance_loss(plan: RoutingPlan, roles: Sequence[str], modalities: Sequence[str]) -> Tensor | None:
    """Switch load balance (Fedus et al. 2021, eq. 4), per modality over the experts of its own role.

    For modality m with G experts of its role: ``G * sum_i f_i P_i`` where f_i is the share of m's routes to the role
    that expert i got and P_i its share of the gate probability; 1 when perfectly even. Modalities weigh equally,
    however many tokens each has, so that fifty camera tokens do not drown two state tokens. A role with no more
    experts than K has nothing to balance and is left out, and so is a modality that sends nothing to its own role (its
    share there says nothing, and 0 would look better than even); None when nothing is left.
    """
    terms = []
    for m, modality in enumerate(modalities):
        members = [e for e, role in enumerate(roles) if role == modality]
        rows = plan.modality_T == m
        if len(members) <= plan.experts_per_token or not bool(rows.any()):
            continue
        index = torch.tensor(members, device=plan.ids_TK.device)
        f_G = (plan.ids_TK[rows].reshape(-1, 1) == index).float().sum(dim=0)
        if not bool(f_G.any()):
            continue
        p_G = plan.probabilities_TE[rows][:, index].mean(dim=0)
        f_G, p_G = f_G / f_G.sum(), p_G / p_G.sum().clamp(min=1e-9)
        terms.append(len(members) * (f_G * p_G).sum())
    return torch.stack(terms).mean() if terms else None


def z_loss(plan: RoutingPlan) -> Tensor:
    """Router z-loss (ST-MoE, Zoph et al. 2022, eq. 5): mean squared log-partition, keeps logits small."""
    return plan.logits_TE.logsumexp(dim=-1).square().mean()
