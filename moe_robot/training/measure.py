"""What a run says about its gate, and how well a policy does on demonstrations that it was not trained on."""

from __future__ import annotations

from typing import Any

import torch

from moe_robot.training.config import TrainConfig
from moe_robot.training.device import autocast
from moe_robot.types import Routing

PROBE_BATCHES = 4
"""Batches on which routing and validation loss are measured."""


@torch.no_grad()
def probe(policy: Any, dataset: Any, config: TrainConfig, bf16: bool) -> dict[str, Any]:
    """Routing shares and mean losses over a few fixed batches, in evaluation mode."""
    policy.eval()
    total, sums = None, {}
    for i in range(PROBE_BATCHES):
        batch = dataset.batch(dataset.draw(0, i, min(config.batch_size, len(dataset))))
        with autocast(policy.device, bf16):
            _, logs = policy(batch)
        for key, value in logs.items():
            sums[key] = sums.get(key, 0.0) + value / PROBE_BATCHES
        routing = policy.routing()
        total = routing if total is None or routing is None else total + routing
    policy.train()
    return {"routing": None if total is None else total.share(), "losses": sums}


def routing_numbers(routing: Routing | None) -> dict[str, float]:
    """What shows a gate drifting, collapsing or overflowing: for each modality the share of its routes that go to
    experts of its own role, and for each modality and expert the share of routes that a capacity dropped."""
    if routing is None:
        return {}
    own = {f"own_role_{modality}": roles.get(modality, 0.0) for modality, roles in routing.share().items()}
    return own | {f"drop_rate_{name}": rate for name, rate in routing.drop_rates().items()}
