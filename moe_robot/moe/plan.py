"""The routing plan: which experts every token visits, made once per layer and only read afterwards.

Shape suffixes used in this package:
    T tokens · D model width · E experts · K experts per token · R = T·K routed rows · M modalities · L layers
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoutingPlan:
    """A frozen record between the router and the experts. Tensors only; nothing in it is ever changed.

    Attributes:
        ids_TK: int64 (T, K), experts of each token, highest gate probability first.
        weights_TK: float32 (T, K), what each expert's output is multiplied by.
        probabilities_TE: float32 (T, E), softmax over the available experts; 0 for those that are switched off.
        logits_TE: float32 (T, E), before the softmax; -inf for experts that are switched off.
        modality_T: int64 (T,), the modality of each token.
        order_R: int64 (R,), flat (token, slot) indices sorted by expert, stable.
        inverse_R: int64 (R,), the inverse permutation of ``order_R``.
        counts_E: int64 (E,), rows per expert.
        dropped_TK: bool (T, K), True where a route found no place in its expert's capacity; None when dropless.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    probabilities_TE: Tensor
    logits_TE: Tensor
    modality_T: Tensor
    order_R: Tensor
    inverse_R: Tensor
    counts_E: Tensor
    dropped_TK: Tensor | None = None

    @property
    def experts_per_token(self) -> int:
        """K of this plan; below the router's K when fewer experts are available."""
        return self.ids_TK.shape[1]


def make_plan(
    ids_TK: Tensor, weights_TK: Tensor, probabilities_TE: Tensor, logits_TE: Tensor, modality_T: Tensor
) -> RoutingPlan:
    """Sort the chosen routes by expert, stably: the same choice gives the same row order on every run."""
    flat_R = ids_TK.reshape(-1)
    order_R = torch.argsort(flat_R, stable=True)
    inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(order_R.numel(), device=order_R.device))
    counts_E = torch.bincount(flat_R, minlength=logits_TE.shape[1])
    return RoutingPlan(ids_TK, weights_TK, probabilities_TE, logits_TE, modality_T, order_R, inverse_R, counts_E)
