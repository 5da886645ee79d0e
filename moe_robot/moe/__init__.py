"""The mixture-of-experts library: routing, experts, dispatch, losses, cold experts, reports (torch only)."""

from moe_robot.moe.balance import ColdWatch, Revival, forget_moments, revive
from moe_robot.moe.choice import Choice
from moe_robot.moe.dispatch import (
    choose_backend,
    execute,
    execute_everywhere,
    execute_grouped,
    execute_loop,
    execute_single,
    execute_sorted,
)
from moe_robot.moe.draws import fresh_key, normal, uniform
from moe_robot.moe.experts import Activation, ExpertBank, FeedForwardExpert, is_gated
from moe_robot.moe.gate import GateConfig, Units, at_least_float32
from moe_robot.moe.layer import MoEFeedForward, expert_names, expert_roles
from moe_robot.moe.losses import (
    balance_loss,
    balance_loss_over_all,
    begin_balance_loss,
    begin_balance_loss_over_all,
    competitive_loss,
    global_entropy,
    importance_loss,
    load_loss,
    local_entropy,
    z_loss,
)
from moe_robot.moe.parallel import ExpertShard, execute_sharded, shard_experts
from moe_robot.moe.plan import RoutingPlan, make_plan
from moe_robot.moe.ranks import ALONE, Ranks, share
from moe_robot.moe.report import count_dropped, count_first, count_routes, count_tokens, drop_rate, sum_entropy
from moe_robot.moe.router import Router
from moe_robot.moe.rows import combine, gather
from moe_robot.moe.segment_experts import AttentionExpert, ConvolutionExpert

__all__ = [
    "ALONE",
    "Activation",
    "AttentionExpert",
    "Choice",
    "ColdWatch",
    "ConvolutionExpert",
    "ExpertBank",
    "ExpertShard",
    "FeedForwardExpert",
    "GateConfig",
    "MoEFeedForward",
    "Ranks",
    "Revival",
    "Router",
    "RoutingPlan",
    "Units",
    "at_least_float32",
    "balance_loss",
    "balance_loss_over_all",
    "begin_balance_loss",
    "begin_balance_loss_over_all",
    "choose_backend",
    "combine",
    "competitive_loss",
    "count_dropped",
    "count_first",
    "count_routes",
    "count_tokens",
    "drop_rate",
    "execute",
    "execute_everywhere",
    "execute_grouped",
    "execute_loop",
    "execute_sharded",
    "execute_single",
    "execute_sorted",
    "expert_names",
    "expert_roles",
    "forget_moments",
    "fresh_key",
    "gather",
    "global_entropy",
    "importance_loss",
    "is_gated",
    "load_loss",
    "local_entropy",
    "make_plan",
    "normal",
    "revive",
    "shard_experts",
    "share",
    "sum_entropy",
    "uniform",
    "z_loss",
]
