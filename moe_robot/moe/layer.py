"""The mixture-of-experts feed-forward layer: route, execute, and give back the plan for losses and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from moe_robot.moe.dispatch import execute
from moe_robot.moe.experts import ExpertBank
from moe_robot.moe.plan import RoutingPlan
from moe_robot.moe.router import Router


def expert_roles(counts: Mapping[str, int]) -> tuple[str, ...]:
    """``{"vision": 2, "arm": 1}`` -> ``("vision", "vision", "arm")``."""
    return tuple(role for role, n in counts.items() for _ in range(n))


def expert_names(counts: Mapping[str, int]) -> tuple[str, ...]:
    """``{"vision": 2, "arm": 1}`` -> ``("vision.0", "vision.1", "arm.0")``."""
    return tuple(f"{role}.{i}" for role, n in counts.items() for i in range(n))


class MoEFeedForward(nn.Module):
    """A learned gate and E SwiGLU experts; only the K chosen experts of a token run.

    Args:
        width: D.
        hidden: hidden width of one expert.
        experts: role -> number of experts.
        modalities: names of the token kinds.
        experts_per_token, prior, learned_gate: see :class:`Router`.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: Mapping[str, int],
        modalities: Sequence[str],
        experts_per_token: int = 2,
        prior: float = 1.0,
        learned_gate: bool = True,
    ) -> None:
        super().__init__()
        roles = expert_roles(experts)
        self.router = Router(width, roles, modalities, experts_per_token, prior, learned_gate)
        self.experts = ExpertBank(len(roles), width, hidden)

    def forward(
        self, x_TD: Tensor, modality_T: Tensor, available_E: Tensor | None = None
    ) -> tuple[Tensor, RoutingPlan]:
        """Tokens (T, D) -> (tokens (T, D), plan)."""
        plan = self.router(x_TD, modality_T, available_E)
        return execute(plan, x_TD, self.experts), plan
