"""Counts of routes per modality and expert, read from a plan."""

from __future__ import annotations

from torch import Tensor

from moe_robot.moe.losses import routes_of
from moe_robot.moe.plan import RoutingPlan


def count_routes(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """int64 (M, E): how many routes tokens of each modality chose to each expert, before any capacity."""
    return routes_of(plan, n_modalities).long()


def drop_rate(plan: RoutingPlan) -> Tensor:
    """Share of the chosen routes that a capacity dropped; 0 without one."""
    if plan.dropped_TK is None:
        return plan.weights_TK.new_zeros(())
    return plan.dropped_TK.sum() / plan.chosen_TK.sum().clamp(min=1)
