"""The routing plan: which experts every token visits, made once per layer and only read afterwards.

Shape suffixes used in this package:
    T tokens · D model width · E experts · K routes per token · R routes that run · M modalities · U routing units
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_robot.moe.choice import Choice, Noise, within_capacity


@dataclass(frozen=True)
class RoutingPlan:
    """A frozen record between the router and the experts. Tensors only; nothing in it is ever changed.

    Attributes:
        ids_TK: int64 (T, K), experts of each token, best first.
        weights_TK: float32 (T, K), what each expert's output is multiplied by; 0 for a route that does not run.
        probabilities_TE: float32 (T, E), softmax over the available experts; 0 for those that are not.
        logits_TE: float32 (T, E), before the softmax; -inf for experts that are not available.
        modality_T: int64 (T,), the modality of each token.
        order_R: int64 (R,), flat (token, slot) indices of the routes that run, sorted by expert, stable.
        inverse_R: int64 (T * K,), for each flat route its row in that order; R for a route that does not run.
        counts_E: int64 (E,), rows per expert.
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
    order_R: Tensor
    inverse_R: Tensor
    counts_E: Tensor
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


def make_plan(choice: Choice, capacity: int | None = None) -> RoutingPlan:
    """Sort the chosen routes by expert, stably: the same choice gives the same row order on every run.

    Args:
        choice: of the gate.
        capacity: rows that an expert takes at most; what is beyond it is dropped. None for no limit.
    """
    ids_TK, weights_TK, kept_TK, dropped_TK = choice.ids_TK, choice.weights_TK, choice.chosen_TK, None
    if capacity is not None:
        chosen_TK = torch.ones_like(ids_TK, dtype=torch.bool) if kept_TK is None else kept_TK
        kept_TK = chosen_TK & within_capacity(choice, capacity)
        dropped_TK = chosen_TK & ~kept_TK
    n_experts = choice.logits_TE.shape[1]
    flat_R = ids_TK.reshape(-1)
    if kept_TK is None:
        order_R = torch.argsort(flat_R, stable=True)
        inverse_R = torch.empty_like(order_R)
        inverse_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
        counts_E = torch.zeros(n_experts, dtype=torch.int64, device=flat_R.device)
        counts_E = counts_E.scatter_add(0, flat_R, torch.ones_like(flat_R))
    else:
        weights_TK = weights_TK * kept_TK
        last_R = torch.where(kept_TK.reshape(-1), flat_R, n_experts)  # what does not run is sorted behind all experts
        counts_E = torch.bincount(last_R, minlength=n_experts + 1)[:n_experts]
        n_rows = int(counts_E.sum())
        order_R = torch.argsort(last_R, stable=True)[:n_rows]
        inverse_R = torch.full_like(flat_R, n_rows)
        inverse_R[order_R] = torch.arange(n_rows, device=order_R.device)
    return RoutingPlan(
        ids_TK, weights_TK, choice.probabilities_TE, choice.logits_TE, choice.modality_T,
        order_R, inverse_R, counts_E, kept_TK, dropped_TK, choice.noise,
    )  # fmt: skip
