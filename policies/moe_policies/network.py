"""The network: stems make tokens, the trunk mixes them, the head reads the action tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_policies.config import MODALITIES, PolicyConfig
from moe_policies.heads import FlowHead, L1Head
from moe_policies.stems import SUMMARY_HEADS, CameraStem, Glimpse, StateStem, Summary, TextStem
from moe_policies.trunk import Block, Tokens
from moe_robot.moe import RoutingPlan, balance_loss, expert_roles, z_loss
from moe_robot.types import Features

GRASP_NAME = "gripper"
"""State and action entries with this in their name are grasp; all others are arm."""


@dataclass(frozen=True)
class Inputs:
    """Normalised inputs of one forward pass.

    Attributes:
        images: camera -> float (B, 3, H, W).
        state_BS: float (B, S).
        sentences: B instructions; ignored by a policy that cannot read.
    """

    images: dict[str, Tensor]
    state_BS: Tensor
    sentences: Sequence[str]


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives.

    Attributes:
        action_BGD: action tokens (B, G, D), for the head.
        summary_BS: what the sentence asks for, after the first block (B, S).
        plans: one per block; none for a dense trunk.
    """

    action_BGD: Tensor
    summary_BS: Tensor
    plans: list[RoutingPlan]


def split_by_role(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of arm entries and grasp entries; a role without entries is left out."""
    grasp = [i for i, name in enumerate(names) if GRASP_NAME in name]
    arm = [i for i in range(len(names)) if i not in grasp]
    return {role: indices for role, indices in (("arm", arm), ("grasp", grasp)) if indices}


class Network(nn.Module):
    """Stems, trunk and head. Reads normalised inputs, gives normalised actions."""

    def __init__(self, config: PolicyConfig, features: Features, text_encoder: nn.Module | None) -> None:
        super().__init__()
        d = config.width
        self.roles = expert_roles(config.experts) if config.feed_forward == "moe" else ()
        self.cameras = nn.ModuleDict({camera: CameraStem(config) for camera in features.cameras})
        self.glimpses = nn.ModuleDict({camera: Glimpse(config) for camera in features.cameras if config.glimpses})
        state = split_by_role(features.state_names)
        self.states = nn.ModuleList(StateStem(role, indices, d) for role, indices in state.items())
        self.text = None if text_encoder is None else TextStem(text_encoder, config)
        actions = split_by_role(features.action_names)
        self.action_roles = tuple(actions)
        self.queries = nn.Parameter(torch.randn(len(actions), d) * 0.02)
        self.summary = Summary(d)
        self.task_head = nn.Linear(SUMMARY_HEADS * d, len(config.task_names)) if config.task_names else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        head = L1Head if config.head == "l1" else FlowHead
        self.head = head(d, config.chunk, list(actions.values()))

    def forward(self, inputs: Inputs, available_E: Tensor | None = None) -> Outputs:
        """One pass.

        The glimpses are taken after the first block, when the words have been through their experts: what the
        sentence asks for steers where the cameras are read closely.
        """
        b = inputs.state_BS.shape[0]
        queries = [Tokens.of(self.queries[g].expand(b, 1, -1), role) for g, role in enumerate(self.action_roles)]
        parts = [*queries, *(stem(inputs.state_BS) for stem in self.states)]
        first_word = sum(part.modality_N.numel() for part in parts)
        words = slice(first_word, first_word)
        if self.text is not None:
            parts.append(self.text(inputs.sentences))
            words = slice(first_word, first_word + parts[-1].modality_N.numel())
        maps = {}
        for camera, stem in self.cameras.items():
            patches, maps[camera] = stem(inputs.images[camera])
            parts.append(patches)
        tokens, plans = Tokens.concatenate(parts), []
        summary_BS = tokens.x_BND
        for i, block in enumerate(self.blocks):
            last = i + 1 == len(self.blocks)
            tokens, plan = block(tokens, available_E, len(self.action_roles) if last else None)
            plans += [] if plan is None else [plan]
            if i == 0:
                summary_BS = self.summary(tokens.x_BND[:, words], tokens.present_BN[:, words])
                looks = [self.glimpses[camera](features, summary_BS) for camera, features in maps.items()]
                tokens = Tokens.concatenate([tokens, *looks])
        return Outputs(tokens.x_BND, summary_BS, plans)

    def gate_losses(self, plans: Sequence[RoutingPlan]) -> tuple[Tensor, Tensor]:
        """Balance and z-loss, each computed per layer and averaged over layers (never pooled first).

        A layer with nothing to balance is left out of the balance; it is 0 when none has.
        """
        z = torch.stack([z_loss(plan) for plan in plans]).mean()
        per_layer = [balance_loss(plan, self.roles, MODALITIES) for plan in plans]
        terms = [loss for loss in per_layer if loss is not None]
        return torch.stack(terms).mean() if terms else torch.zeros_like(z), z
