"""The mixture-of-experts feed-forward layer: route, execute, and give back the plan for losses and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moe_robot.moe.dispatch import Execute, execute
from moe_robot.moe.experts import Activation, ExpertBank, FeedForwardExpert
from moe_robot.moe.plan import RoutingPlan
from moe_robot.moe.router import GateConfig, Router, Units


def expert_roles(counts: Mapping[str, int]) -> tuple[str, ...]:
    """``{"vision": 2, "arm": 1}`` -> ``("vision", "vision", "arm")``."""
    return tuple(role for role, n in counts.items() for _ in range(n))


def expert_names(counts: Mapping[str, int]) -> tuple[str, ...]:
    """``{"vision": 2, "arm": 1}`` -> ``("vision.0", "vision.1", "arm.0")``."""
    return tuple(f"{role}.{i}" for role, n in counts.items() for i in range(n))


class MoEFeedForward(nn.Module):
    """A gate and E experts; only the K chosen experts of a token run.

    Args:
        width: D.
        hidden: hidden width of one expert.
        experts: role -> number of experts.
        modalities: names of the token kinds.
        gate: how the gate decides.
        activation: of the experts: "swiglu", "geglu" or "relu".
        kinds: role -> class of its experts, ``kind(width, hidden)``, for roles whose experts are no plain
            feed-forward network: any module (R, D) -> (R, D). One with ``takes_segments`` is called with the rows of
            whole segments and their segment ids; one with ``accepts`` (names of modalities) gets only tokens of these.
        shared: always-on experts beside the routed ones (DeepSeekMoE, Dai et al. 2024, eq. 9); their outputs are added.
        scale: what the routed experts' sum is multiplied by (``routed_scaling_factor`` of DeepSeek-V2 and V3). Weights
            that sum to 1 make an average of K experts, where one dense network of their width makes a sum: K undoes it.

    Raises:
        ValueError: for a role among ``kinds`` that has no experts, or a gate that does not fit.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: Mapping[str, int],
        modalities: Sequence[str],
        gate: GateConfig | None = None,
        activation: Activation = "swiglu",
        kinds: Mapping[str, type[nn.Module]] | None = None,
        shared: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        roles, kinds = expert_roles(experts), kinds or {}
        for role in kinds:
            if role not in roles:
                raise ValueError(f"unknown expert role {role!r}: expected one of {', '.join(dict.fromkeys(roles))}")
        self.names = expert_names(experts)
        accepts = [getattr(kinds.get(role), "accepts", None) for role in roles]
        accepts_ME = torch.tensor([[names is None or m in names for names in accepts] for m in modalities])
        self.router = Router(width, roles, modalities, gate, None if bool(accepts_ME.all()) else accepts_ME)
        self.experts: nn.ModuleList
        if kinds:
            self.experts = nn.ModuleList(
                kinds[role](width, hidden) if role in kinds else FeedForwardExpert(width, hidden, activation)
                for role in roles
            )
        else:
            self.experts = ExpertBank(len(roles), width, hidden, activation)
        self.shared = FeedForwardExpert(width, shared * hidden, activation) if shared else None
        self.scale = scale
        self.execute: Execute = execute
        """How tokens reach their experts; another way can be put here, such as :func:`execute_everywhere`."""

    def forward(
        self,
        x_TD: Tensor,
        modality_T: Tensor,
        available: Tensor | None = None,
        units: Units | None = None,
        segment_T: Tensor | None = None,
        place_T: Tensor | None = None,
        reads_TD: Tensor | None = None,
    ) -> tuple[Tensor, RoutingPlan]:
        """Tokens (T, D) -> (tokens (T, D), plan).

        Args:
            x_TD: the tokens.
            modality_T: int64 (T,).
            available, units, place_T: see :meth:`Router.forward`.
            segment_T: int64 (T,), the frame or sentence of each token, tokens of one side by side; needed by experts
                that take whole segments.
            reads_TD: what the gate reads in place of each token (T, D), for example with the task added to it.
        """
        plan = self.router(x_TD if reads_TD is None else reads_TD, modality_T, available, units, place_T=place_T)
        y_TD = self.execute(plan, x_TD, self.experts, segment_T)
        if self.scale != 1.0:
            y_TD = y_TD * self.scale
        return (y_TD if self.shared is None else y_TD + self.shared(x_TD)), plan
