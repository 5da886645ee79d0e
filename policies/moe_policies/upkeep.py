"""What is done for the gates between two updates: balancing biases, and cold experts found and brought back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_policies.config import MODALITIES, PolicyConfig
from moe_robot.moe import (
    ALONE,
    ColdWatch,
    MoEFeedForward,
    Ranks,
    RoutingPlan,
    count_routes,
    forget_moments,
    revive,
)
from moe_robot.types import GateEvent


class Watches(nn.ModuleList):
    """A watch on the load of every layer with experts, saved with the policy so that a resumed run goes on exactly."""

    def __init__(self, config: PolicyConfig, layers: Sequence[MoEFeedForward]) -> None:
        super().__init__(
            ColdWatch(layer.router.roles, MODALITIES, config.cold_after, pooled=config.balances_all) for layer in layers
        )
        self.ranks: Ranks = ALONE
        self._counts: list[Callable[[], Tensor]] = []

    def note(self, plans: Sequence[Sequence[RoutingPlan]]) -> None:
        """Take the plans of one forward pass; an update may have several."""
        count = [
            torch.stack([count_routes(plan, len(MODALITIES)) for plan in of_layer]).sum(dim=0) for of_layer in plans
        ]
        self._counts.append(self.ranks.begin_sum(torch.stack(count)))  # on its way during the backward pass

    def after_update(
        self,
        config: PolicyConfig,
        layers: Sequence[MoEFeedForward],
        optimiser: Any = None,
    ) -> list[GateEvent]:
        """Look at everybody's routes since the last update; see :meth:`moe_robot.types.Policy.after_update`."""
        events: list[GateEvent] = []
        if not self._counts:
            return events
        counts_LME = torch.stack([counted() for counted in self._counts]).sum(dim=0)
        self._counts.clear()
        for i, (layer, watch, counts_ME) in enumerate(zip(layers, self, counts_LME, strict=True)):
            assert isinstance(watch, ColdWatch)
            if config.bias_rate:
                layer.router.balance(config.bias_rate)
            for e in watch.update(counts_ME):
                events.append(GateEvent("cold", i, layer.names[e]))
                done = revive(layer, e, watch.load_E.tolist()) if config.revive else None
                if done is not None:
                    watch.forget(e)
                    if optimiser is not None:
                        forget_moments(optimiser, [done])
                    events.append(GateEvent("revived", i, done.cold, done.hot))
        return events
