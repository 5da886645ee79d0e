"""The gate: scores every expert for every token and keeps the best K.

``logits = W h + b[modality]``, softmax in float32, top-K, weights renormalised over the chosen (K >= 2, as in
GShard and Mixtral) or left as the probability (K = 1, Switch Transformer, Fedus et al. 2021, eq. 2: otherwise the
weight is the constant 1 and the gate gets no gradient).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_robot.moe.plan import RoutingPlan, make_plan


class Router(nn.Module):
    """A learned top-K gate over E experts with roles.

    Args:
        width: D, the token width.
        roles: the role of each expert, length E.
        modalities: names of the token kinds, length M.
        experts_per_token: K.
        prior: bonus that each modality's bias starts with on experts of the role of the same name, in logits.
            It only says where tokens begin: the bias is learned like any weight, and nothing is masked.
        learned: False freezes the gate at its random start (the control for "does learning to route matter").
    """

    def __init__(
        self,
        width: int,
        roles: Sequence[str],
        modalities: Sequence[str],
        experts_per_token: int = 2,
        prior: float = 1.0,
        learned: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= experts_per_token <= len(roles):
            raise ValueError(
                f"experts_per_token is {experts_per_token}, expected 1 to {len(roles)} (the number of experts)"
            )
        self.roles, self.modalities, self.experts_per_token = tuple(roles), tuple(modalities), experts_per_token
        self.weight_ED = nn.Parameter(torch.randn(len(roles), width) * width**-0.5 * (0.1 if learned else 1.0))
        match_ME = torch.tensor([[prior * (role == modality) for role in roles] for modality in modalities])
        self.bias_ME = nn.Parameter(match_ME.float())
        self.requires_grad_(learned)

    def forward(self, x_TD: Tensor, modality_T: Tensor, available_E: Tensor | None = None) -> RoutingPlan:
        """Choose the experts of each token.

        Args:
            x_TD: tokens (T, D), any float type; the gate itself always computes in float32.
            modality_T: int64 (T,).
            available_E: bool (E,), False for an expert that must not run (missing sensor, knock-out study).
                With fewer than K experts available, K falls to that number.

        Raises:
            ValueError: if no expert is available.
        """
        if torch.is_autocast_enabled(x_TD.device.type):
            with torch.autocast(x_TD.device.type, enabled=False):  # bf16 logits make ties, and ties make noise
                return self._route(x_TD, modality_T, available_E)
        return self._route(x_TD, modality_T, available_E)

    def _route(self, x_TD: Tensor, modality_T: Tensor, available_E: Tensor | None) -> RoutingPlan:
        k = self.experts_per_token
        bias_TE = self.bias_ME.float().index_select(0, modality_T)
        logits_TE = torch.addmm(bias_TE, x_TD.float(), self.weight_ED.float().t())
        if available_E is not None:
            k = min(k, int(available_E.sum()))
            if k == 0:
                raise ValueError("every expert is switched off: at least one must be available")
            logits_TE = logits_TE.masked_fill(~available_E, float("-inf"))
        probabilities_TE = logits_TE.softmax(dim=-1)
        weights_TK, ids_TK = probabilities_TE.topk(k, dim=-1)
        if self.experts_per_token > 1:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return make_plan(ids_TK, weights_TK, probabilities_TE, logits_TE, modality_T)
