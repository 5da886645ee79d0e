"""The network: stems make tokens, the trunk mixes them, the head reads the action tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from moe_policies.config import MODALITIES, PolicyConfig
from moe_policies.heads import FlowHead, L1Head, MixtureHead
from moe_policies.places import PlaceNames, Places, in_picture, picture_loss
from moe_policies.stems import SUMMARY_HEADS, CameraStem, Glimpse, Look, StateStem, Summary, TextStem, unit
from moe_policies.trunk import Block, FeedForward, Gating, Tokens
from moe_policies.vision import resolve_vision_encoder
from moe_robot.moe import MoEFeedForward, RoutingPlan, at_least_float32, expert_roles
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
        present: sensor -> bool (B,), False where a sample lacks it; sensors that all samples have are left out. What
            stands in its place in the other fields is not read.
    """

    images: dict[str, Tensor]
    state_BS: Tensor
    sentences: Sequence[str]
    present: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives.

    Attributes:
        action_BGD: action tokens (B, G, D), for the head.
        summary_BS: what the sentence asks for, after the first block (B, S).
        looks: camera -> what its glimpse found.
        plans: routing plans per layer, the entry layer first; empty for a dense trunk. The entry layer has two: of the
            sensors' tokens and of the glimpses.
        present: aligned with ``plans``: bool (B, N) each, which tokens the plan's rows are, sample by sample.
    """

    action_BGD: Tensor
    summary_BS: Tensor
    looks: Mapping[str, Look]
    plans: list[list[RoutingPlan]]
    present: list[list[Tensor]]


def split_by_role(names: Sequence[str], ignored: Sequence[str] = ()) -> dict[str, list[int]]:
    """Indices of arm entries and grasp entries, but for those whose name fits a pattern of ``ignored``.

    A role without entries is left out.
    """
    heeded = [i for i, name in enumerate(names) if not any(fnmatchcase(name, pattern) for pattern in ignored)]
    grasp = [i for i in heeded if GRASP_NAME in names[i]]
    arm = [i for i in heeded if i not in grasp]
    return {role: indices for role, indices in (("arm", arm), ("grasp", grasp)) if indices}


class Network(nn.Module):
    """Stems, trunk and head. Reads normalised inputs, gives normalised actions."""

    def __init__(self, config: PolicyConfig, features: Features, text_encoder: nn.Module | None) -> None:
        super().__init__()
        d, self.config = config.width, config
        self.roles = expert_roles(config.experts) if config.feed_forward == "moe" else ()
        self.gates_hear = config.feed_forward == "moe" and (config.routing_unit == "instruction" or config.gate_hears)
        self.vision = resolve_vision_encoder(config.vision)
        """The frozen encoder that all cameras share; no part of the weights. None where each trains a stem."""
        self.cameras = nn.ModuleDict({camera: CameraStem(config, self.vision) for camera in features.cameras})
        self.told = PlaceNames.of(config.places, features.cameras)
        self.glimpses = nn.ModuleDict(
            {camera: Glimpse(config, len(self.told.things)) for camera in features.cameras if config.glimpses}
        )
        state = split_by_role(features.state_names, config.ignore_state)
        self.states = nn.ModuleList(
            StateStem(role, indices, d, config.state_octaves) for role, indices in state.items()
        )
        self.sizes = dict(features.cameras)
        self.heeded = sorted(index for indices in state.values() for index in indices)
        width = len(self.glimpses) * Glimpse.read_width(config) + len(self.heeded)
        told = [config.places[i] for i in self.told.world]
        self.places = Places(told, width) if told and self.glimpses else None
        self.text = None if text_encoder is None else TextStem(text_encoder, config)
        actions = split_by_role(features.action_names)
        self.action_roles = tuple(actions)
        self.queries = nn.Parameter(torch.randn(len(actions), d) * 0.02)
        self.summary = Summary(d)
        self.task_head = nn.Linear(SUMMARY_HEADS * d, len(config.task_names)) if config.task_names else None
        self.entry = FeedForward(config, 0)
        self.blocks = nn.ModuleList(Block(config, 1 + i) for i in range(config.layers))
        groups = list(actions.values())
        self.head: L1Head | FlowHead | MixtureHead
        if config.head == "mixture1991":
            self.head = MixtureHead(d, config.chunk, groups, config.n_experts)
        else:
            self.head = (L1Head if config.head == "l1" else FlowHead)(d, config.chunk, groups)

    @property
    def moe_layers(self) -> list[MoEFeedForward]:
        """The layers with experts, the entry layer first."""
        layers = [self.entry.layer, *(block.feed_forward.layer for block in self.blocks)]  # type: ignore[union-attr]
        return [layer for layer in layers if isinstance(layer, MoEFeedForward)]

    def forward(self, inputs: Inputs, available_E: Tensor | None = None) -> Outputs:
        """One pass.

        Every token enters the trunk through the entry layer: what comes out of its experts takes the token's place,
        with no way around them. The glimpses are taken after the first block, so what the language experts made of
        the sentence steers where the cameras are read closely; they enter through the experts as well.
        """
        b = inputs.state_BS.shape[0]
        queries = [Tokens.of(self.queries[g].expand(b, 1, -1), role) for g, role in enumerate(self.action_roles)]
        parts = [*queries, *(_where(inputs, str(stem.modality), stem(inputs.state_BS)) for stem in self.states)]
        first_word = sum(part.modality_N.numel() for part in parts)
        words = slice(first_word, first_word)
        if self.text is not None:
            parts.append(_where(inputs, "language", self.text(inputs.sentences)))
            words = slice(first_word, first_word + parts[-1].modality_N.numel())
        maps = {}
        for camera, stem in self.cameras.items():
            patches, maps[camera] = stem(inputs.images[camera])
            parts.append(_where(inputs, camera, patches))
        arriving = Tokens.concatenate(parts)
        gating = Gating(
            available_E,
            self._available_for(arriving) if inputs.present else None,
            _mean_word(arriving, words) if self.gates_hear else None,
        )
        plans: list[list[RoutingPlan]] = [[] for _ in range(1 + len(self.blocks))]
        present: list[list[Tensor]] = [[] for _ in plans]

        def note(layer: int, plan: RoutingPlan | None, routed: Tokens) -> None:
            if plan is not None:
                plans[layer].append(plan)
                present[layer].append(routed.present_BN)

        def enter(arriving: Tokens) -> Tokens:
            y_BND, plan = self.entry(arriving, gating)
            note(0, plan, arriving)
            y_BND = at_least_float32(y_BND)  # the residual stream stays wide
            return arriving.replaced(y_BND if plan is None else carry_lost(arriving, y_BND, plan))

        def run(layer: int, arriving: Tokens, keep: int | None = None) -> Tokens:
            leaving, plan = self.blocks[layer - 1](arriving, gating, keep)
            note(layer, plan, leaving)
            return leaving

        tokens = run(1, enter(arriving))
        summary_BS = self.summary(tokens.x_BND[:, words], tokens.present_BN[:, words])
        looks = {camera: glimpse(maps[camera], summary_BS) for camera, glimpse in self.glimpses.items()}
        if looks:
            seen = [_where(inputs, camera, look.tokens) for camera, look in looks.items()]
            tokens = Tokens.concatenate([tokens, enter(Tokens.concatenate(seen))])
        last = len(self.blocks)
        for layer in range(2, last):
            tokens = run(layer, tokens)
        tokens = run(last, tokens, keep=len(self.action_roles))
        return Outputs(
            tokens.x_BND,
            summary_BS,
            looks,
            [of_layer for of_layer in plans if of_layer],
            [of_layer for of_layer in present if of_layer],
        )

    def told_places(self, looks: Mapping[str, Look], state_BS: Tensor) -> Tensor:
        """Where things are in the world, normalised, from what the cameras found and the state; training only."""
        assert self.places is not None
        finds = [look.finds_BTR for look in looks.values()]
        state_BTS = state_BS[:, None, self.heeded].expand(-1, finds[0].shape[1], -1)
        return self.places(torch.cat([*finds, state_BTS], dim=-1))

    def in_pictures(self, told_BN: Tensor) -> dict[str, Tensor]:
        """Camera -> bool (B, T), for the cameras of whose pictures the demonstrations tell; training only."""
        pairs = self.told.pictures
        return {camera: in_picture(told_BN, pairs[camera]) for camera in self.glimpses if camera in pairs}

    def picture_loss(self, looks: Mapping[str, Look], told_BN: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Mean over the cameras of :meth:`in_pictures`, of which there is one at least."""
        pairs = self.told.pictures
        losses = [picture_loss(looks[name].scores_BTHW, told_BN, pairs[name], of) for name, of in weights.items()]
        return torch.stack(losses).mean()

    def _available_for(self, tokens: Tokens) -> Tensor | None:
        """bool (B, E): False for the experts of a role of whose modality a sample has no token at all."""
        if not self.roles:
            return None
        has_BM = torch.stack(
            [(tokens.present_BN & (tokens.modality_N == m)).any(dim=1) for m in range(len(MODALITIES))], dim=1
        )
        return has_BM[:, [MODALITIES.index(role) for role in self.roles]]


def _where(inputs: Inputs, sensor: str, tokens: Tokens) -> Tokens:
    """The tokens of a sensor, absent in the samples that lack it."""
    if sensor not in inputs.present:
        return tokens
    present_BN = tokens.present_BN & inputs.present[sensor].unsqueeze(1)
    return dataclasses.replace(tokens, present_BN=present_BN)


def _mean_word(tokens: Tokens, words: slice) -> Tensor:
    """What the sentence says by itself, before the trunk, brought to unit size: (B, D)."""
    x_BWD, present_BW1 = tokens.x_BND[:, words], tokens.present_BN[:, words].unsqueeze(-1)
    mean_BD = (x_BWD * present_BW1).sum(dim=1) / present_BW1.sum(dim=1).clamp(min=1)
    return unit(at_least_float32(mean_BD), -1)


def carry_lost(before: Tokens, after_BND: Tensor, plan: RoutingPlan) -> Tensor:
    """A token that lost all its routes to a capacity passes a layer without a residual as it is."""
    if plan.dropped_TK is None or plan.kept_TK is None:
        return after_BND
    lost_T = plan.dropped_TK.any(dim=1) & ~plan.kept_TK.any(dim=1)
    lost_BN = torch.zeros_like(before.present_BN).masked_scatter(before.present_BN, lost_T)
    return torch.where(lost_BN.unsqueeze(-1), at_least_float32(before.x_BND), after_BND)
