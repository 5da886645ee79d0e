"""The routing plan: which experts every token visits, made once per layer and only read afterwards.

Shape suffixes used in this package:
    T tokens · D model width · E experts · K routes per token · R routes that run · M modalities · U routing units
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_robot.moe.choice import Choice, Noise, within_capacity
from moe_robot.moe.ranks import ALONE, Ranks


class _Derived:
    """A tensor that follows from the fields, worked out when first read and kept.

    Not functools' cached_property: its lock (Python 3.11) costs time and stops torch.compile.
    """

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, plan: Any, owner: type) -> Tensor:
        value = self.compute(plan)
        if not torch.compiler.is_compiling():
            plan.__dict__[self.name] = value
        return value


@dataclass(frozen=True)
class RoutingPlan:
    """A frozen record between the router and the experts. Tensors only; nothing in it is ever changed.

    What the gate decided is stored; how the rows lie in expert order follows from it, and is worked out when first
    asked for: one token alone, or a report, never asks.

    Attributes:
        ids_TK: int64 (T, K), experts of each token, best first.
        weights_TK: float32 (T, K), what each expert's output is multiplied by; 0 for a route that does not run.
        probabilities_TE: float32 (T, E), softmax over the available experts; 0 for those that are not.
        logits_TE: float32 (T, E), before the softmax; -inf for experts that are not available.
        modality_T: int64 (T,), the modality of each token.
        kept_TK: bool (T, K), the routes that run; None when all do.
        dropped_TK: bool (T, K), routes that were lost to a capacity; None without one. A slot that is neither kept nor
            dropped is empty: fewer than K experts were available to that token.
        noise: of noisy top-k in training, else None.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    probabilities_TE: Tensor
    logits_TE: Tensor
    modality_T: Tensor
    kept_TK: Tensor | None = None
    dropped_TK: Tensor | None = None
    noise: Noise | None = None

    @property
    def experts_per_token(self) -> int:
        """K of this plan: the number of slots per token."""
        return self.ids_TK.shape[1]

    @property
    def chosen_TK(self) -> Tensor:
        """bool (T, K): the routes that the gate chose, also those that a capacity then dropped."""
        if self.kept_TK is None:
            return torch.ones_like(self.ids_TK, dtype=torch.bool)
        return self.kept_TK if self.dropped_TK is None else self.kept_TK | self.dropped_TK

    @_Derived
    def order_R(self) -> Tensor:
        """int64 (R,), flat (token, slot) indices of the routes that run, sorted by expert, stable.

        The same choice gives the same row order on every run. R is T·K, fewer when some routes do not run.
        """
        flat_R = self.ids_TK.reshape(-1)
        if self.kept_TK is None:
            return torch.argsort(flat_R, stable=True)
        running_R = self.kept_TK.reshape(-1).nonzero().squeeze(1)
        return running_R[torch.argsort(flat_R[running_R], stable=True)]

    @_Derived
    def inverse_R(self) -> Tensor:
        """int64 (T·K,), the row of each route in expert order; R, one past the last, for a route that does not run."""
        order_R = self.order_R
        n_running, n_routes = order_R.shape[0], self.ids_TK.numel()
        inverse_R = torch.empty_like(order_R) if self.kept_TK is None else order_R.new_full((n_routes,), n_running)
        return inverse_R.scatter_(0, order_R, torch.arange(n_running, device=order_R.device))

    @_Derived
    def token_R(self) -> Tensor:
        """int64 (R,), the token of each row in expert order."""
        return self.order_R // self.experts_per_token

    @_Derived
    def counts_E(self) -> Tensor:
        """int64 (E,), running rows per expert. Counted without asking the device for anything."""
        flat_R = self.ids_TK.reshape(-1)
        ones_R = torch.ones_like(flat_R) if self.kept_TK is None else self.kept_TK.reshape(-1).to(torch.int64)
        return flat_R.new_zeros(self.logits_TE.shape[1]).scatter_add_(0, flat_R, ones_R)


def make_plan(choice: Choice, capacity: int | None = None, ranks: Ranks = ALONE) -> RoutingPlan:
    """The plan of what the gate chose; a route that does not run gets the weight 0.

    Args:
        choice: of the gate.
        capacity: rows that an expert takes at most; what is beyond it is dropped. None for no limit.
        ranks: who shares the batch, and with it an expert's capacity.
    """
    weights_TK, kept_TK, dropped_TK = choice.weights_TK, choice.chosen_TK, None
    if capacity is not None:
        chosen_TK = torch.ones_like(choice.ids_TK, dtype=torch.bool) if kept_TK is None else kept_TK
        kept_TK = chosen_TK & within_capacity(choice, capacity, ranks)
        dropped_TK = chosen_TK & ~kept_TK
    if kept_TK is not None:
        weights_TK = weights_TK.masked_fill(~kept_TK, 0.0)
    return RoutingPlan(
        choice.ids_TK, weights_TK, choice.probabilities_TE, choice.logits_TE, choice.modality_T,
        kept_TK, dropped_TK, choice.noise,
    )  # fmt: skip
