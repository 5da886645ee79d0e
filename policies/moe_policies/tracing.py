"""Reads the plans of a forward pass: sums per layer and modality, and which token went to which expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_policies.config import MODALITIES
from moe_policies.network import Network
from moe_robot.moe import RoutingPlan, count_dropped, count_first, count_routes, count_tokens, sum_entropy
from moe_robot.types import Routing, TokenLabel, TokenRoutes


def tell(plans: Sequence[Sequence[RoutingPlan]], experts: tuple[str, ...], roles: tuple[str, ...]) -> Routing:
    """What the gate did in each layer, the plans of one layer added up."""

    def of_each_layer(read: Callable[[RoutingPlan, int], Tensor]) -> np.ndarray:
        sums = [torch.stack([read(plan, len(MODALITIES)) for plan in of_layer]).sum(dim=0) for of_layer in plans]
        return torch.stack(sums).cpu().numpy()

    return Routing(
        MODALITIES,
        experts,
        roles,
        counts_LME=of_each_layer(count_routes),
        tokens_LM=of_each_layer(count_tokens),
        entropy_LM=of_each_layer(sum_entropy),
        dropped_LME=of_each_layer(count_dropped),
        top_LME=of_each_layer(count_first),
    )


def tell_each(
    plans: Sequence[Sequence[RoutingPlan]],
    present: Sequence[Sequence[Tensor]],
    experts: tuple[str, ...],
    roles: tuple[str, ...],
) -> tuple[Routing, ...]:
    """What the gate did with each sample of the batch by itself; ``present`` as for :func:`trace`."""
    b = present[0][0].shape[0]
    parts = [
        [_of_samples(plan, present_BN) for plan, present_BN in zip(of_layer, members, strict=True)]
        for of_layer, members in zip(plans, present, strict=True)
    ]
    return tuple(tell([[of_plan[i] for of_plan in of_layer] for of_layer in parts], experts, roles) for i in range(b))


def _of_samples(plan: RoutingPlan, present_BN: Tensor) -> list[RoutingPlan]:
    """A plan cut into one per sample: its rows stand sample by sample. What decides nothing any more is left out."""
    sizes = present_BN.sum(dim=1).tolist()

    def cut(rows: Tensor | None) -> Sequence[Any]:
        return [None] * len(sizes) if rows is None else rows.split(sizes)

    fields = ("ids_TK", "weights_TK", "probabilities_TE", "logits_TE", "modality_T", "kept_TK", "dropped_TK")
    return [
        RoutingPlan(**dict(zip(fields, row, strict=True)))
        for row in zip(*(cut(getattr(plan, name)) for name in fields), strict=True)
    ]


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
