"""What the gate wants, before rows are sorted: tokens choose experts, or experts choose tokens, within a capacity.

Shape suffixes as in :mod:`moe_robot.moe.plan`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_robot.moe.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Noise:
    """What noisy top-k drew from, kept for the load loss (Shazeer et al. 2017, eq. 8 to 10).

    Attributes:
        clean_TE: logits before the noise, float32 (T, E).
        scale_TE: standard deviation of the noise on each logit, float32 (T, E).
    """

    clean_TE: Tensor
    scale_TE: Tensor


@dataclass(frozen=True)
class Choice:
    """What the gate wants, before it is known whether there is room for it.

    Attributes: as in :class:`RoutingPlan`; ``chosen_TK`` is None when every slot is filled.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    probabilities_TE: Tensor
    logits_TE: Tensor
    modality_T: Tensor
    chosen_TK: Tensor | None = None
    noise: Noise | None = None


def experts_choose(
    p_TE: Tensor, logits_TE: Tensor, modality_T: Tensor, noise: Noise | None, k: int, ranks: Ranks = ALONE
) -> Choice:
    """Expert choice (Zhou et al. 2022): every expert takes the ceil(K T / E) tokens that it scores highest."""
    all_TE, mine = ranks.gather(p_TE)
    t, e = all_TE.shape
    taken_TE = torch.zeros_like(all_TE, dtype=torch.bool)
    taken_TE.scatter_(0, all_TE.topk(min(t, math.ceil(k * t / e)), dim=0).indices, True)
    taken_TE, ids_TE = taken_TE[mine], torch.arange(e, device=p_TE.device).expand_as(p_TE)
    return Choice(ids_TE, p_TE * taken_TE, p_TE, logits_TE, modality_T, taken_TE & (p_TE > 0), noise)


def capacity_of(experts_per_token: int, tokens: int, experts: int, factor: float) -> int:
    """Rows that one expert takes at most: ``ceil(K T / E * factor)`` (GShard; Switch, eq. 3, with K = 1)."""
    return max(1, math.ceil(experts_per_token * tokens / experts * factor))


def within_capacity(choice: Choice, capacity: int, ranks: Ranks = ALONE) -> Tensor:
    """bool (T, K): the routes that are among the first ``capacity`` of their expert, by gate probability.

    Ties go to the earlier token. Empty slots take no place.
    """
    if ranks.size > 1:
        everybodys, mine = _of_all(choice, ranks)
        return within_capacity(everybodys, capacity)[mine]
    flat_R = choice.ids_TK.reshape(-1)
    score_R = choice.probabilities_TE.gather(1, choice.ids_TK).reshape(-1)
    if choice.chosen_TK is not None:
        score_R = torch.where(choice.chosen_TK.reshape(-1), score_R, -1.0)
    by_score_R = torch.argsort(score_R, descending=True, stable=True)
    order_R = by_score_R[torch.argsort(flat_R[by_score_R], stable=True)]
    counts_E = torch.bincount(flat_R, minlength=choice.logits_TE.shape[1])
    place_R = torch.arange(order_R.numel(), device=order_R.device) - (counts_E.cumsum(0) - counts_E)[flat_R[order_R]]
    kept_R = torch.empty_like(flat_R, dtype=torch.bool)
    kept_R[order_R] = place_R < capacity
    return kept_R.view_as(choice.ids_TK)


def _of_all(choice: Choice, ranks: Ranks) -> tuple[Choice, slice]:
    """The choices of all who share the batch as one, as far as a capacity asks; and which of its tokens are ours."""
    ids_TK, mine = ranks.gather(choice.ids_TK)
    probabilities_TE, _ = ranks.gather(choice.probabilities_TE)
    chosen_TK = None if choice.chosen_TK is None else ranks.gather(choice.chosen_TK)[0]
    parts = {"ids_TK": ids_TK, "probabilities_TE": probabilities_TE, "chosen_TK": chosen_TK}
    return dataclasses.replace(choice, logits_TE=probabilities_TE, **parts), mine
