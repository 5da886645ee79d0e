"""What is done for the gates between two updates: balancing biases, and cold experts found and brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from moe_policies.config import MODALITIES, PolicyConfig
from moe_robot.moe import ColdWatch, MoEFeedForward, RoutingPlan, count_routes, forget_moments, revive
from moe_robot.types import GateEvent


class Watches(nn.ModuleList):
    """A watch on the load of every layer with experts, saved with the policy so that a resumed run goes on exactly."""

    def __init__(self, config: PolicyConfig, layers: Sequence[MoEFeedForward]) -> None:
        super().__init__(
            ColdWatch(layer.router.roles, MODALITIES, config.cold_after, pooled=config.balances_all) for layer in layers
        )

    def after_update(
        self,
        config: PolicyConfig,
        layers: Sequence[MoEFeedForward],
        plans: Sequence[Sequence[RoutingPlan]],
        optimiser: Any = None,
    ) -> list[GateEvent]:
        """Take the plans of the update that was just made; see :meth:`moe_robot.types.Policy.after_update`."""
        events: list[GateEvent] = []
        for i, (layer, watch, of_layer) in enumerate(zip(layers, self, plans, strict=True)):
            assert isinstance(watch, ColdWatch)
            if config.bias_rate:
                layer.router.balance(config.bias_rate)
            counts_ME = torch.stack([count_routes(plan, len(MODALITIES)) for plan in of_layer]).sum(dim=0)
            for e in watch.update(counts_ME):
                events.append(GateEvent("cold", i, layer.names[e]))
                done = revive(layer, e, watch.load_E.tolist()) if config.revive else None
                if done is not None:
                    watch.forget(e)
                    if optimiser is not None:
                        forget_moments(optimiser, [done])
                    events.append(GateEvent("revived", i, done.cold, done.hot))
        return events
