"""The mixture-of-experts library: routing, experts, dispatch, losses, reports (torch only)."""

from moe_robot.moe.dispatch import combine, execute_loop, execute_sorted
from moe_robot.moe.experts import SwiGLU
from moe_robot.moe.layer import MoEFeedForward, expert_names, expert_roles
from moe_robot.moe.losses import balance_loss, z_loss
from moe_robot.moe.plan import RoutingPlan, make_plan
from moe_robot.moe.report import count_dropped, count_first, count_routes, count_tokens, sum_entropy
from moe_robot.moe.router import Router

__all__ = [
    "MoEFeedForward",
    "Router",
    "RoutingPlan",
    "SwiGLU",
    "balance_loss",
    "combine",
    "count_dropped",
    "count_first",
    "count_routes",
    "count_tokens",
    "execute_loop",
    "execute_sorted",
    "expert_names",
    "expert_roles",
    "make_plan",
    "sum_entropy",
    "z_loss",
]
