"""Reads the plans of a forward pass: sums per layer and modality, and which token went to which expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from moe_policies.config import MODALITIES
from moe_policies.network import Network
from moe_robot.moe import RoutingPlan, count_dropped, count_first, count_routes, count_tokens, sum_entropy
from moe_robot.types import Routing, TokenLabel, TokenRoutes

READ = {
    "counts_LME": count_routes,
    "tokens_LM": count_tokens,
    "entropy_LM": sum_entropy,
    "dropped_LME": count_dropped,
    "top_LME": count_first,
}
"""Field of a routing -> what is read off a plan for it, per modality."""


def tell(plans: Sequence[Sequence[RoutingPlan]], experts: tuple[str, ...], roles: tuple[str, ...]) -> Routing:
    """What the gate did in each layer, the plans of one layer added up."""
    m = len(MODALITIES)
    return Routing(MODALITIES, experts, roles, **{name: _of_layers(plans, read, m) for name, read in READ.items()})


def tell_each(
    plans: Sequence[Sequence[RoutingPlan]],
    present: Sequence[Sequence[Tensor]],
    experts: tuple[str, ...],
    roles: tuple[str, ...],
) -> tuple[Routing, ...]:
    """What the gate did with each sample of the batch by itself; ``present`` as for :func:`trace`.

    Every sample counts as a set of modalities of its own, so that all are counted at once.
    """
    b, m = present[0][0].shape[0], len(MODALITIES)
    marked = [
        [_marked(plan, present_BN, m) for plan, present_BN in zip(of_layer, members, strict=True)]
        for of_layer, members in zip(plans, present, strict=True)
    ]
    parts = {name: np.split(_of_layers(marked, read, b * m), b, axis=1) for name, read in READ.items()}
    return tuple(
        Routing(MODALITIES, experts, roles, **{name: part[i] for name, part in parts.items()}) for i in range(b)
    )


def _marked(plan: RoutingPlan, present_BN: Tensor, m: int) -> RoutingPlan:
    sample_T = present_BN.nonzero(as_tuple=True)[0]  # a plan's rows stand sample by sample
    return replace(plan, modality_T=plan.modality_T + m * sample_T)


def _of_layers(
    plans: Sequence[Sequence[RoutingPlan]], read: Callable[[RoutingPlan, int], Tensor], modalities: int
) -> np.ndarray:
    sums = [torch.stack([read(plan, modalities) for plan in of_layer]).sum(dim=0) for of_layer in plans]
    return torch.stack(sums).cpu().numpy()


def label_tokens(network: Network, n_words: int, patches: int, glimpses: int) -> tuple[TokenLabel, ...]:
    """The tokens of a forward pass in the order in which the network lines them up.

    Args:
        network: says which cameras, state stems and action queries there are.
        n_words: words of the longest sentence in the batch; 0 for a policy that cannot read.
        patches: P, patches per row and column.
        glimpses: per camera; they come last, since they enter after the first block.
    """
    labels = [TokenLabel(role, f"{role} action") for role in network.action_roles]
    labels += [TokenLabel(str(stem.modality), f"{stem.modality} state") for stem in network.states]
    labels += [TokenLabel("language", f"word {i}") for i in range(n_words)]
    for camera in network.cameras:
        for cell in range(patches**2):
            row, column = divmod(cell, patches)
            place = (row, column, patches, patches)
            labels.append(TokenLabel("vision", f"{camera} patch {row},{column}", camera, place))
    for camera in network.glimpses:
        labels += [TokenLabel("vision", f"{camera} glimpse {i}", camera) for i in range(glimpses)]
    return tuple(labels)


def trace(
    plans: Sequence[Sequence[RoutingPlan]], present: Sequence[Sequence[Tensor]], labels: tuple[TokenLabel, ...]
) -> tuple[TokenRoutes, ...]:
    """One :class:`TokenRoutes` per layer from its plans and the bool (B, N) that say which tokens their rows are.

    Several plans of a layer stand one after the other; a layer that routes only the first tokens leaves the rest -1.
    """
    routes = []
    for of_layer, members in zip(plans, present, strict=True):
        b, k = members[0].shape[0], max(plan.experts_per_token for plan in of_layer)
        ids_BNK = torch.full((b, len(labels), k), -1, dtype=torch.int64)
        weights_BNK = torch.zeros(b, len(labels), k)
        first = 0
        for plan, present_BN in zip(of_layer, members, strict=True):
            sample_T, token_T = present_BN.cpu().nonzero(as_tuple=True)
            ids_TK = torch.where(plan.chosen_TK, plan.ids_TK, -1).cpu()  # an empty slot is -1 as well
            ids_BNK[sample_T, token_T + first, : plan.experts_per_token] = ids_TK
            weights_BNK[sample_T, token_T + first, : plan.experts_per_token] = plan.weights_TK.detach().cpu().float()
            first += present_BN.shape[1]
        routes.append(TokenRoutes(labels, ids_BNK.numpy(), weights_BNK.numpy().astype(np.float32)))
    return tuple(routes)
