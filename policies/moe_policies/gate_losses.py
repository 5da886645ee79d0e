"""The auxiliary losses of a policy's gates, as its configuration weighs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_policies.config import MODALITIES, PolicyConfig
from moe_robot.moe import (
    ALONE,
    Ranks,
    RoutingPlan,
    begin_balance_loss,
    begin_balance_loss_over_all,
    global_entropy,
    importance_loss,
    load_loss,
    local_entropy,
    z_loss,
)


def begin_gate_losses(
    config: PolicyConfig, roles: Sequence[str], plans: Sequence[RoutingPlan], ranks: Ranks = ALONE
) -> Callable[[], dict[str, Tensor]]:
    """What is returned gives name -> unweighted loss, each computed per plan and averaged (never pooled first).

    A loss whose weight is 0 is left out, but for the balance, which is always logged. A plan with nothing to balance is
    left out of the balance; it is 0 when none has anything. ``ranks`` share the batch, and the sums of the balance are
    on their way until the losses are asked for.
    """
    if config.balances_all:
        of_all = begin_balance_loss_over_all(plans, ranks)
        return lambda: _with_others(config, plans, ranks, of_all().mean())
    by_role = begin_balance_loss(plans, roles, MODALITIES, ranks)

    def losses() -> dict[str, Tensor]:
        values_L, counts_L = by_role()
        return _with_others(config, plans, ranks, (values_L * counts_L).sum() / counts_L.sum().clamp(min=1))

    return losses


def _with_others(
    config: PolicyConfig, plans: Sequence[RoutingPlan], ranks: Ranks, balance: Tensor
) -> dict[str, Tensor]:
    m = len(MODALITIES)
    losses = {"balance_loss": balance}
    others = {
        "z_loss": lambda plan: z_loss(plan, ranks),
        "importance_loss": lambda plan: importance_loss(plan, ranks),
        "load_loss": lambda plan: load_loss(plan, ranks),
        "local_entropy": lambda plan: local_entropy(plan, m, ranks),
        "global_entropy": lambda plan: global_entropy(plan, m, ranks=ranks),
    }
    weights = _weights(config)
    for name, loss in others.items():
        noiseless = name == "load_loss" and plans[0].noise is None  # evaluation has no noise to speak of
        if weights[name] and not noiseless:
            losses[name] = torch.stack([loss(plan) for plan in plans]).mean()
    return losses


def weighted(config: PolicyConfig, losses: dict[str, Tensor]) -> Tensor:
    """The sum of the losses, each times its weight."""
    weights = _weights(config)
    zero = torch.zeros_like(losses["balance_loss"])
    return torch.stack([zero, *(weights[name] * loss for name, loss in losses.items() if weights[name])]).sum()


def _weights(config: PolicyConfig) -> dict[str, float]:
    return {
        "balance_loss": config.balance_weight,
        "z_loss": config.z_weight,
        "importance_loss": config.importance_weight,
        "load_loss": config.load_weight,
        "local_entropy": config.local_entropy_weight,
        "global_entropy": config.global_entropy_weight,
    }
