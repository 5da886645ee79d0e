"""Auxiliary losses of the gate, pure functions of a plan. They are returned, never kept anywhere.

Each takes the ``ranks`` that share the batch: its sums go over the tokens of all of them before anything is divided.
Everybody gets the loss of the whole batch, but for the z-loss, whose mean over the ranks is that of the whole batch.

The mean of a loss over layers is taken by the caller, after each layer's own product of shares: pooled over layers
first, four layers that have each collapsed on another expert would look perfectly balanced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe_robot.moe.gate import own_role
from moe_robot.moe.plan import RoutingPlan
from moe_robot.moe.ranks import ALONE, Ranks


def balance_loss(
    plans: Sequence[RoutingPlan], roles: Sequence[str], modalities: Sequence[str], ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:
    """Switch load balance (Fedus et al. 2021, eq. 4 to 6), per modality over the experts of its own role.

    For modality m with G experts of its role: ``G * sum_i f_i P_i`` where f_i is the share of m's routes to the role
    that expert i got and P_i its share of the gate probability; 1 when perfectly even. Modalities weigh equally,
    however many tokens each has, so that fifty camera tokens do not drown two state tokens. A role with no more
    experts than K has nothing to balance and is left out, and so is a modality that sends nothing to its own role (its
    share there says nothing, and 0 would look better than even).

    Args:
        plans: L of them, of layers with the same experts; the sums of all are exchanged at once.
        roles: of the experts.
        modalities: of the tokens.
        ranks: who shares the batch.

    Returns:
        (L,) the mean over the modalities that count, and (L,) whether there is any (1.0 or 0.0; the mean is then 0):
        tensors both, so that a GPU need not wait to know.
    """
    return begin_balance_loss(plans, roles, modalities, ranks)()


def begin_balance_loss(
    plans: Sequence[RoutingPlan], roles: Sequence[str], modalities: Sequence[str], ranks: Ranks = ALONE
) -> Callable[[], tuple[Tensor, Tensor]]:
    """:func:`balance_loss`, begun: what it returns waits for the sums of the other ranks and gives the losses."""
    own_ME = own_role(roles, modalities).to(plans[0].ids_TK.device)
    sums = ranks.begin_sum(torch.stack([_routes_and_gates(plan, len(modalities)) for plan in plans], dim=1))
    return lambda: _balance_of(sums() * own_ME, own_ME.sum(dim=1), plans[0].experts_per_token)


def _balance_of(sums_2LME: Tensor, size_M: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """From the routes and gates of all tokens, each modality's to the ``size_M`` experts of its own role."""
    f_LME, p_LME = sums_2LME
    total_LM = f_LME.sum(dim=-1)
    counts_LM = ((size_M > k) & (total_LM > 0)).float()
    f_LME = f_LME / total_LM.clamp(min=1).unsqueeze(-1)
    p_LME = p_LME / p_LME.sum(dim=-1, keepdim=True).clamp(min=1e-9)
    terms_LM = size_M * (f_LME * p_LME).sum(dim=-1)
    return (terms_LM * counts_LM).sum(dim=-1) / counts_LM.sum(dim=-1).clamp(min=1), (counts_LM.sum(dim=-1) > 0).float()


def _routes_and_gates(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """(2, M, E): how many routes of each modality go to each expert, and the sum of the gate's probabilities."""
    p_ME = _by_modality(plan, n_modalities).T @ plan.probabilities_TE
    return torch.stack([routes_of(plan, n_modalities).to(p_ME.dtype), p_ME])


def balance_loss_over_all(plans: Sequence[RoutingPlan], ranks: Ranks = ALONE) -> Tensor:
    """The same over all experts and tokens at once, as in papers, which know no roles: (L,) ``E * sum_i f_i P_i``."""
    return begin_balance_loss_over_all(plans, ranks)()


def begin_balance_loss_over_all(plans: Sequence[RoutingPlan], ranks: Ranks = ALONE) -> Callable[[], Tensor]:
    """:func:`balance_loss_over_all`, begun: what it returns waits for the sums of the other ranks."""
    sums = []
    for plan in plans:
        present_T = plan.chosen_TK.any(dim=1).to(plan.probabilities_TE.dtype)
        p_E = (plan.probabilities_TE * present_T.unsqueeze(1)).sum(dim=0)
        f_E = routes_of(plan, 1, pooled=True)[0].to(p_E.dtype)
        sums.append(torch.stack([f_E, p_E, present_T.sum().expand_as(p_E)]))
    total = ranks.begin_sum(torch.stack(sums, dim=1))

    def result() -> Tensor:
        f_LE, p_LE, n_LE = total()
        p_LE = p_LE / n_LE.clamp(min=1)
        return f_LE.shape[1] * (f_LE / f_LE.sum(dim=-1, keepdim=True).clamp(min=1) * p_LE).sum(dim=-1)

    return result


def z_loss(plan: RoutingPlan, ranks: Ranks = ALONE) -> Tensor:
    """Router z-loss (ST-MoE, Zoph et al. 2022, eq. 5): mean squared log-partition, keeps logits small."""
    present_T = plan.logits_TE.amax(dim=-1) > float("-inf")  # a token with no expert available has no logits
    z_T = torch.where(present_T.unsqueeze(1), plan.logits_TE, 0.0).logsumexp(dim=-1)
    return (z_T.square() * ranks.begin_shares(present_T)()).sum()


def importance_loss(plan: RoutingPlan, ranks: Ranks = ALONE) -> Tensor:
    """Squared coefficient of variation of the experts' summed gate values (Shazeer et al. 2017, eq. 6 and 7).

    The gate values are the weights after top-k, as there: 0 for experts that a token does not visit.
    """
    zeros_TE = torch.zeros_like(plan.probabilities_TE)
    gates_TE = zeros_TE.scatter(1, plan.ids_TK, plan.weights_TK * plan.chosen_TK)
    return _squared_variation(ranks.sum(gates_TE.sum(dim=0)))


def load_loss(plan: RoutingPlan, ranks: Ranks = ALONE) -> Tensor:
    """Squared coefficient of variation of the experts' smooth load (Shazeer et al. 2017, appendix A, eq. 8 to 11).

    The load of expert i is ``sum_t Phi((clean_ti - threshold_ti) / scale_ti)``: the probability that i would be among
    the top K of token t if its noise alone were drawn again; the threshold is the K-th highest of the others.

    Raises:
        ValueError: for a plan without noise: only noisy top-k has this loss.
    """
    if plan.noise is None:
        raise ValueError("the load loss needs the noise of noisy top-k: expected a gate with noisy=True in training")
    k, n_experts = plan.experts_per_token, plan.logits_TE.shape[1]
    if k >= n_experts:
        return plan.logits_TE.new_zeros(())
    best = plan.logits_TE.clamp(min=-1e9).topk(k + 1, dim=-1)  # -inf, for what is absent, has no gradient
    is_in_TE = torch.zeros_like(plan.logits_TE, dtype=torch.bool).scatter(1, best.indices[:, :k], True)
    threshold_TE = torch.where(is_in_TE, best.values[:, k : k + 1], best.values[:, k - 1 : k])
    distance_TE = (plan.noise.clean_TE - threshold_TE) / plan.noise.scale_TE
    smooth_TE = 0.5 * (1 + torch.erf(distance_TE / math.sqrt(2)))
    return _squared_variation(ranks.sum(torch.where(plan.logits_TE > float("-inf"), smooth_TE, 0.0).sum(dim=0)))


def local_entropy(plan: RoutingPlan, n_modalities: int, ranks: Ranks = ALONE) -> Tensor:
    """LIMoE's local loss (Mustafa et al. 2022, eq. 4): mean gate entropy per modality, in nats; low when sure.

    The mean over the modalities that have tokens.
    """
    of_TM = _by_modality(plan, n_modalities)
    n_M, sum_M = ranks.sum(torch.stack([of_TM.sum(dim=0), of_TM.T @ _entropy(plan.probabilities_TE)]))
    mean_M = sum_M / n_M.clamp(min=1)
    return mean_M.sum() / (n_M > 0).sum().clamp(min=1)


def global_entropy(
    plan: RoutingPlan, n_modalities: int, threshold: float | None = None, ranks: Ranks = ALONE
) -> Tensor:
    """LIMoE's global loss (eq. 5): minus the entropy of each modality's mean gate; small when it uses many experts.

    Args:
        plan: of one layer.
        n_modalities: M.
        ranks: who shares the batch.
        threshold: entropy in nats beyond which a modality is content, ``max(0, threshold - H)``; log(n) asks for about
            n experts. None asks for all.
    """
    of_TM = _by_modality(plan, n_modalities)
    sums_MX = ranks.sum(torch.cat([of_TM.T @ plan.probabilities_TE, of_TM.sum(dim=0).unsqueeze(1)], dim=1))
    n_M = sums_MX[:, -1]
    h_M = _entropy(sums_MX[:, :-1] / n_M.clamp(min=1).unsqueeze(1))
    lack_M = -h_M if threshold is None else (threshold - h_M).clamp(min=0)
    return torch.where(n_M > 0, lack_M, 0.0).sum() / (n_M > 0).sum().clamp(min=1)


def competitive_loss(p_BE: Tensor, output_BEX: Tensor, target_BX: Tensor) -> Tensor:
    """The error of the adaptive mixtures of local experts (Jacobs et al. 1991, eq. 1.3), one value per case (B,).

    ``-log sum_i p_i exp(-1/2 |d - o_i|^2)``: the negative log-likelihood of the target under a mixture of unit
    Gaussians around the experts' outputs, so that experts compete for cases in place of blending for each.
    """
    half_square_BE = 0.5 * (output_BEX - target_BX.unsqueeze(1)).square().sum(dim=-1)
    return -torch.logsumexp(p_BE.clamp(min=1e-30).log() - half_square_BE, dim=-1)


def routes_of(plan: RoutingPlan, n_modalities: int, pooled: bool = False) -> Tensor:
    """float32 (M, E): routes that each modality's tokens chose, before any capacity; ``pooled`` puts all in row 0."""
    n_experts = plan.logits_TE.shape[1]
    row_T1 = torch.zeros_like(plan.modality_T).unsqueeze(1) if pooled else plan.modality_T.unsqueeze(1)
    cell_R = (row_T1 * n_experts + plan.ids_TK).reshape(-1)
    one_R = torch.ones_like(cell_R, dtype=torch.float32) if plan.kept_TK is None else plan.chosen_TK.reshape(-1).float()
    return one_R.new_zeros(n_modalities * n_experts).scatter_add(0, cell_R, one_R).view(n_modalities, n_experts)


def _by_modality(plan: RoutingPlan, n_modalities: int) -> Tensor:
    """float32 (T, M): 1 where a token that may go anywhere is of the modality."""
    of_TM = torch.nn.functional.one_hot(plan.modality_T, n_modalities).to(plan.probabilities_TE.dtype)
    return of_TM if plan.kept_TK is None else of_TM * (plan.probabilities_TE.sum(dim=-1, keepdim=True) > 0)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-20).log()).sum(dim=-1)


def _squared_variation(x_E: Tensor) -> Tensor:
    return x_E.var(unbiased=False) / (x_E.mean().square() + 1e-10)
