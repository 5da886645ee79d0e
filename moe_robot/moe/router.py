"""The gate: scores every expert for every token (or frame, or sentence) and keeps the best K.

``logits = W h + b[modality]``, softmax in float32, top-K. Weights are renormalised over the chosen for K >= 2 (GShard,
Lepikhin et al. 2020; GLaM; Mixtral) and stay the probability for K = 1 (Switch Transformer, Fedus et al. 2021, eq. 2:
otherwise the weight is the constant 1 and the gate gets no gradient). K = E is the dense mixture ``sum_i p_i f_i(x)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_robot.moe.choice import Choice, Noise, capacity_of, experts_choose
from moe_robot.moe.gate import (
    GateConfig,
    Units,
    at_least_float32,
    check_gate,
    own_role,
    refuse_at_inference,
    refuse_not_finite,
)
from moe_robot.moe.logits import gate_logits
from moe_robot.moe.losses import routes_of
from moe_robot.moe.plan import RoutingPlan, make_plan
from moe_robot.moe.ranks import ALONE, Ranks


class Router(nn.Module):
    """A top-K gate over E experts with roles.

    Args:
        width: D, the token width.
        roles: the role of each expert, length E.
        modalities: names of the token kinds, length M.
        config: how it decides.
        accepts_ME: bool (M, E), False where an expert cannot take tokens of a modality; None when all can.

    Raises:
        ValueError: for a K that does not fit the experts, or a config that contradicts itself.
    """

    def __init__(
        self,
        width: int,
        roles: Sequence[str],
        modalities: Sequence[str],
        config: GateConfig | None = None,
        accepts_ME: Tensor | None = None,
    ) -> None:
        super().__init__()
        config = config or GateConfig()
        check_gate(config, roles, modalities)
        self.roles, self.modalities, self.config = tuple(roles), tuple(modalities), config
        own_ME = own_role(roles, modalities)
        learned, typed = config.kind == "learned", config.kind == "typed"
        self.weight_ED = nn.Parameter(torch.randn(len(roles), width) * width**-0.5 * (0.1 if learned else 1.0))
        self.bias_ME = nn.Parameter(own_ME.float() * (config.prior if config.bias else 0.0))
        self.noise_ED = nn.Parameter(torch.zeros(len(roles), width)) if config.noisy else None
        self.requires_grad_(learned)
        self.bias_ME.requires_grad_(learned and config.bias)
        if typed:
            accepts_ME = own_ME if accepts_ME is None else own_ME & accepts_ME
        self.accepts_ME: Tensor | None
        self.register_buffer("accepts_ME", accepts_ME, persistent=False)
        shape = own_ME.shape if config.bias_balancing else (0,)
        self.balancing_ME: Tensor
        self.load_ME: Tensor
        self.register_buffer("balancing_ME", torch.zeros(shape), persistent=config.bias_balancing)
        self.register_buffer("load_ME", torch.zeros(shape), persistent=False)
        self.ranks: Ranks = ALONE
        self.whole_batch = False
        """Set while a batch is only measured in evaluation mode: then expert choice is defined there as well."""

    def forward(
        self,
        x_TD: Tensor,
        modality_T: Tensor,
        available: Tensor | None = None,
        units: Units | None = None,
        capacity_factor: float | None = None,
        place_T: Tensor | None = None,
    ) -> RoutingPlan:
        """Choose the experts of each token.

        Args:
            x_TD: tokens (T, D), any float type; the gate itself always computes in float32.
            modality_T: int64 (T,).
            available: bool (E,) or (T, E), False for an expert that must not run (missing sensor, knock-out study).
                A token with fewer than K experts available visits those; one with none gets zeros.
            units: what decides together; None when every token decides for itself.
            capacity_factor: for this pass in place of the config's; only in training.
            place_T: int64 (T,), which token of the whole batch each is: the noise of training is a function of it.
                None for 0 to T - 1.

        Raises:
            ValueError: if no expert at all is available, if logits are not finite, or for what is refused at inference:
                expert choice, and a capacity.
        """
        if not self.training:
            refuse_at_inference(self.config, capacity_factor, self.whole_batch)
        if torch.is_autocast_enabled(x_TD.device.type):
            with torch.autocast(x_TD.device.type, enabled=False):  # bf16 logits make ties, and ties make noise
                choice = self._decide(at_least_float32(x_TD), modality_T, available, units, place_T)
        else:
            choice = self._decide(at_least_float32(x_TD), modality_T, available, units, place_T)
        factor = self.config.capacity_factor if capacity_factor is None else capacity_factor
        capacity = None
        if self.training and factor is not None:
            tokens = int(self.ranks.sum(torch.tensor(len(x_TD), device=x_TD.device)))
            capacity = capacity_of(self.config.experts_per_token, tokens, len(self.roles), factor)
        plan = make_plan(choice, capacity, self.ranks)
        if self.training and self.config.bias_balancing:
            self.load_ME += routes_of(plan, len(self.modalities))
        return plan

    def _decide(
        self,
        x_TD: Tensor,
        modality_T: Tensor,
        available: Tensor | None,
        units: Units | None,
        place_T: Tensor | None,
    ) -> Choice:
        bias_TE = at_least_float32(self.bias_ME).index_select(0, modality_T) if self.config.bias else None
        noise_ED = self.noise_ED if self.training else None
        jitter = self.config.jitter if self.training else 0.0
        if self.config.kind == "typed":
            logits_TE, noise = x_TD.new_zeros(x_TD.shape[0], len(self.roles)), None
        else:
            place = place_T
            if units is not None and (jitter or noise_ED is not None):
                place = self.ranks.samples(units.n, x_TD.device)
            logits_TE, noise = gate_logits(x_TD, self.weight_ED, bias_TE, noise_ED, jitter, units, place)
        refuse_not_finite(logits_TE)
        mask_TE = self._mask(available, modality_T)
        if mask_TE is not None:
            logits_TE = logits_TE.masked_fill(~mask_TE, float("-inf"))
        return self._choose(logits_TE, mask_TE, modality_T, noise)

    def _mask(self, available: Tensor | None, modality_T: Tensor) -> Tensor | None:
        """bool, broadcastable to (T, E): the experts that each token may visit; None when there is no limit."""
        if available is not None and available.numel() and not bool(available.any()):
            raise ValueError("every expert is switched off: at least one must be available")
        if self.accepts_ME is None:
            return available
        accepted_TE = self.accepts_ME[modality_T]
        return accepted_TE if available is None else accepted_TE & available

    def _choose(self, logits_TE: Tensor, mask_TE: Tensor | None, modality_T: Tensor, noise: Noise | None) -> Choice:
        heard_TE, none_T1 = logits_TE, None
        if mask_TE is not None:
            # A token without any expert has no distribution: zeros, not the NaN of an empty softmax.
            none_T1 = ~mask_TE.any(dim=-1, keepdim=True)
            heard_TE = logits_TE.masked_fill(none_T1, 0.0)
        probabilities_TE = heard_TE.softmax(dim=-1)
        if none_T1 is not None:
            probabilities_TE = probabilities_TE.masked_fill(none_T1, 0.0)
        k, balancing = self.config.experts_per_token, self.config.bias_balancing
        if self.config.choice == "expert":
            return experts_choose(probabilities_TE, logits_TE, modality_T, noise, k, self.ranks)
        scores_TE = heard_TE  # the highest logits are the highest probabilities
        if balancing:
            scores_TE = probabilities_TE + self.balancing_ME[modality_T]
            scores_TE = scores_TE if mask_TE is None else scores_TE.masked_fill(~mask_TE, float("-inf"))
        top = scores_TE.topk(self._slots(mask_TE), dim=-1)
        ids_TK = top.indices
        if k == 1:
            weights_TK = probabilities_TE.gather(1, ids_TK)
        else:  # a softmax over the chosen renormalises in one step, also backward
            weights_TK = (heard_TE.gather(1, ids_TK) if balancing else top.values).softmax(dim=-1)
        chosen_TK = None
        if mask_TE is not None and mask_TE.dim() == 2:
            chosen_TK = mask_TE.expand_as(logits_TE).gather(1, ids_TK)
        return Choice(ids_TK, weights_TK, probabilities_TE, logits_TE, modality_T, chosen_TK, noise)

    def _slots(self, mask_TE: Tensor | None) -> int:
        """K of this pass: lower when every token has fewer experts."""
        if mask_TE is None or mask_TE.dim() == 2:
            return self.config.experts_per_token
        return min(self.config.experts_per_token, int(mask_TE.sum()))

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Move the balancing bias against everybody's load since the last call: ``b += rate * sign(mean load - load)``.

        DeepSeek-V3 (2024), section 2.1.2, per modality over the experts of its own role, and recentred.
        """
        load_ME = self.ranks.sum(self.load_ME)
        for m, own_E in enumerate(own_role(self.roles, self.modalities)):
            load_G = load_ME[m, own_E]
            if len(load_G) > 1 and float(load_G.sum()) > 0:
                bias_G = self.balancing_ME[m, own_E] + rate * torch.sign(load_G.mean() - load_G)
                self.balancing_ME[m, own_E] = bias_G - bias_G.mean()
        self.load_ME.zero_()
