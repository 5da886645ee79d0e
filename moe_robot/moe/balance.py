"""Cold experts: found by name, and brought back by a copy of the busiest expert of their kind.

An expert that no token visits gets no gradient, so it stays as bad as it is and its gate row stays as low: it does not
come back by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_robot.moe.experts import ExpertBank
from moe_robot.moe.gate import own_role
from moe_robot.moe.layer import MoEFeedForward
from moe_robot.moe.parallel import ExpertShard

COLD = 0.1
"""An expert is cold when its load is below this part of its fair share."""


@dataclass(frozen=True)
class Part:
    """A parameter, or one row of it."""

    parameter: nn.Parameter
    row: int | None = None

    def values(self) -> Tensor:
        """A view of the numbers."""
        return self.parameter if self.row is None else self.parameter[self.row]


@dataclass(frozen=True)
class Revival:
    """What was done for a cold expert.

    Attributes:
        cold: name of the expert that was brought back.
        hot: name of the expert that it became a copy of.
        parts: parameters that were overwritten, weights and gate rows.
    """

    cold: str
    hot: str
    parts: tuple[Part, ...]


class ColdWatch(nn.Module):
    """Follows the load of every expert of one layer and says which are cold.

    An expert's fair share is the mean number of routes per expert of its role that tokens of the modality of the same
    name make. Updates in which that modality has no tokens (a missing sensor) do not count.

    Args:
        roles: role of each expert; modalities: names of the token kinds.
        patience: N, updates with too low a load after which an expert is called cold.
        decay: of the moving average of the load.
        pooled: the fair share is the same for all, routes over experts: for gates that know no roles.
    """

    def __init__(
        self,
        roles: Sequence[str],
        modalities: Sequence[str],
        patience: int,
        decay: float = 0.98,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if patience < 1:
            raise ValueError(f"patience is {patience}, expected at least 1 update")
        self.patience, self.decay, self.pooled = patience, decay, pooled
        own_ME = own_role(roles, modalities)
        self.own_ME: Tensor
        self.load_E: Tensor
        self.waited_E: Tensor
        self.register_buffer("own_ME", own_ME, persistent=False)
        self.register_buffer("load_E", torch.ones(len(roles), dtype=torch.float64))
        self.register_buffer("waited_E", torch.zeros(len(roles), dtype=torch.int64))

    def update(self, counts_ME: Tensor) -> list[int]:
        """Take the routes (M, E) of one update; returns the experts that have just become cold, or are so once more."""
        counts_ME = counts_ME.double()
        if self.pooled:
            fair_E = (counts_ME.sum() / counts_ME.shape[1]).expand(counts_ME.shape[1])
        else:
            fair_E = (counts_ME.sum(dim=1) / self.own_ME.sum(dim=1).clamp(min=1)) @ self.own_ME.double()
        seen_E = fair_E > 0
        share_E = counts_ME.sum(dim=0) / fair_E.clamp(min=1e-9)
        self.load_E.copy_(torch.where(seen_E, self.decay * self.load_E + (1 - self.decay) * share_E, self.load_E))
        waited_E = torch.where(self.load_E < COLD, self.waited_E + 1, 0)
        self.waited_E.copy_(torch.where(seen_E, waited_E, self.waited_E))
        now_E = seen_E & (self.waited_E > 0) & (self.waited_E % self.patience == 0)
        return now_E.nonzero().squeeze(1).tolist()

    def forget(self, expert: int) -> None:
        """Begin anew with an expert that was revived."""
        self.load_E[expert], self.waited_E[expert] = 1.0, 0


@torch.no_grad()
def revive(layer: MoEFeedForward, cold: int, load: Sequence[float], noise: float = 0.01) -> Revival | None:
    """Make a cold expert a copy of the busiest one of the same shape, gate row likewise, both with a little noise.

    Args:
        layer: the layer.
        cold: index of the expert.
        load: of each expert, to find the busiest; one of the same role is preferred.
        noise: standard deviation of what is added, as a fraction of each parameter's own.

    Returns:
        what was done, for the log and for :func:`forget_moments`; None when no other expert has the same shape.
    """
    experts, everybody = layer.experts, range(len(layer.names))
    shard = experts if isinstance(experts, ExpertShard) else None
    shapes = shard.shapes if shard else [[part.values().shape for part in _parts(experts, e)] for e in everybody]
    same = [e for e, shape in enumerate(shapes) if e != cold and shape == shapes[cold]]
    if not same:
        return None
    roles, router = layer.router.roles, layer.router
    hot = max(same, key=lambda e: (roles[e] == roles[cold], load[e]))
    gates = [gate for gate in (router.weight_ED, router.noise_ED) if gate is not None]
    sources = shard.fetch(hot) if shard else [part.values() for part in _parts(experts, hot)]
    if shard is None:
        parts = _parts(experts, cold)
    else:
        parts = _parts(shard.here, cold - shard.first) if shard.has(cold) else [None] * len(sources)
    changed = []
    for mine, source in [*zip(parts, sources, strict=True), *((Part(g, cold), g[hot]) for g in gates)]:
        # drawn on the CPU and also by those who keep neither, so that everybody's generator stays in step
        drawn = torch.randn(source.shape, dtype=torch.float32).to(source)
        if mine is not None:
            mine.values().copy_(source + noise * source.std(unbiased=False) * drawn)
            changed.append(mine)
    router.bias_ME[:, cold] = router.bias_ME[:, hot]
    if router.balancing_ME.numel():
        router.balancing_ME[:, cold] = router.balancing_ME[:, hot]
    return Revival(layer.names[cold], layer.names[hot], tuple(changed))


def forget_moments(optimiser: torch.optim.Optimizer, revivals: Iterable[Revival]) -> None:
    """Clear what the optimiser remembers of the overwritten weights: it was about others."""
    for revival in revivals:
        for part in revival.parts:
            if part.row is None:
                optimiser.state.pop(part.parameter, None)
                continue
            for value in optimiser.state.get(part.parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == part.parameter.shape:
                    value[part.row] = 0


def _parts(experts: nn.ModuleList, e: int) -> list[Part]:
    """An expert's own parameters, or its slices of those that a stacked bank holds for all."""
    if isinstance(experts, ExpertBank) and experts.storage == "stacked":
        return [Part(experts.gate_up_EPD, e), Part(experts.out_EDH, e)]
    return [Part(parameter) for parameter in experts[e].parameters()]
