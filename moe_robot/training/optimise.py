"""The optimiser: AdamW with a warm-up and cosine schedule, gradient clipping, and averaged weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from moe_robot.moe import Router
from moe_robot.training.config import TrainConfig


def make_optimiser(
    model: nn.Module, learning_rate: float, weight_decay: float, gate_rate: float = TrainConfig.gate_rate
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019). Only matrices and kernels decay; frozen parameters are left out.

    Every group has a ``rate``: its share of the learning rate of the schedule, ``gate_rate`` for gates.
    """
    gates = {id(p) for module in model.modules() if isinstance(module, Router) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    others = [p for p in trained if id(p) not in gates]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay, "rate": 1.0},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
        {"params": [p for p in trained if id(p) in gates], "weight_decay": 0.0, "rate": gate_rate},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=(0.9, 0.99))


def schedule(step: int, progress: float, warmup: int, floor: float = 0.02) -> float:
    """Factor on the peak learning rate: linear over ``warmup`` steps, then a cosine of ``progress`` in [0, 1]."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return cosine * min(1.0, (step + 1) / max(1, warmup))


class AveragedWeights:
    """Exponential moving average of a model's state; decay warms up so that early weights are forgotten soon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's present weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = model.state_dict()
        floats = [name for name, tensor in present.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [self.state[n] for n in floats], [present[n] for n in floats], 1 - decay
        )
