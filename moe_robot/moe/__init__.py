"""The mixture-of-experts library: routing, experts, dispatch, losses, cold experts, reports (torch only)."""

from moe_robot.moe.balance import ColdWatch, Revival, forget_moments, revive
from moe_robot.moe.choice import Choice
from moe_robot.moe.dispatch import combine, execute, execute_loop
from moe_robot.moe.experts import FeedForwardExpert
from moe_robot.moe.gate import GateConfig, Units
from moe_robot.moe.layer import MoEFeedForward, expert_names, expert_roles
from moe_robot.moe.losses import (
    balance_loss,
    balance_loss_over_all,
    competitive_loss,
    global_entropy,
    importance_loss,
    load_loss,
    local_entropy,
    z_loss,
)
from moe_robot.moe.plan import RoutingPlan, make_plan
from moe_robot.moe.report import count_routes, drop_rate
from moe_robot.moe.router import Router
from moe_robot.moe.segment_experts import AttentionExpert, ConvolutionExpert

__all__ = [
    "AttentionExpert",
    "Choice",
    "ColdWatch",
    "ConvolutionExpert",
    "FeedForwardExpert",
    "GateConfig",
    "MoEFeedForward",
    "Revival",
    "Router",
    "RoutingPlan",
    "Units",
    "balance_loss",
    "balance_loss_over_all",
    "combine",
    "competitive_loss",
    "count_routes",
    "drop_rate",
    "execute",
    "execute_loop",
    "expert_names",
    "expert_roles",
    "forget_moments",
    "global_entropy",
    "importance_loss",
    "load_loss",
    "local_entropy",
    "make_plan",
    "revive",
    "z_loss",
]
