"""The mixture-of-experts library: routing, experts, dispatch, losses, reports (torch only)."""

from moe_robot.moe.dispatch import (
    choose_backend,
    execute,
    execute_grouped,
    execute_loop,
    execute_single,
    execute_sorted,
)
from moe_robot.moe.experts import ExpertBank, FeedForwardExpert, SwiGLU
from moe_robot.moe.layer import MoEFeedForward, expert_names, expert_roles
from moe_robot.moe.losses import balance_loss, z_loss
from moe_robot.moe.plan import RoutingPlan, make_plan
from moe_robot.moe.report import count_routes
from moe_robot.moe.router import Router
from moe_robot.moe.rows import combine, gather

__all__ = [
    "ExpertBank",
    "FeedForwardExpert",
    "MoEFeedForward",
    "Router",
    "RoutingPlan",
    "SwiGLU",
    "balance_loss",
    "choose_backend",
    "combine",
    "count_routes",
    "execute",
    "execute_grouped",
    "execute_loop",
    "execute_single",
    "execute_sorted",
    "expert_names",
    "expert_roles",
    "gather",
    "make_plan",
    "z_loss",
]
