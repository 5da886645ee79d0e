"""The parts of the trunk: tokens, attention, and the feed-forward in which a gate wakes two experts per token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_policies.config import MODALITIES, PolicyConfig
from moe_robot.moe import (
    ALONE,
    AttentionExpert,
    ConvolutionExpert,
    FeedForwardExpert,
    GateConfig,
    MoEFeedForward,
    Ranks,
    RoutingPlan,
    Units,
    at_least_float32,
)


@dataclass(frozen=True)
class Tokens:
    """A padded batch of tokens.

    Attributes:
        x_BND: (B, N, D).
        modality_N: int64 (N,), index into ``MODALITIES``; the same for every sample.
        present_BN: bool (B, N), False for padding and for what is missing. Absent tokens are neither attended to nor
            routed.
        segment_N: int64 (N,), the frame, sentence or state that each token belongs to, tokens of one side by side.
    """

    x_BND: Tensor
    modality_N: Tensor
    present_BN: Tensor
    segment_N: Tensor
    n_segments: int = 1

    @classmethod
    def concatenate(cls, parts: list[Tokens]) -> Tokens:
        """Join along N."""
        return cls(
            torch.cat([part.x_BND for part in parts], dim=1),
            torch.cat([part.modality_N for part in parts]),
            torch.cat([part.present_BN for part in parts], dim=1),
            torch.cat([part.segment_N + sum(p.n_segments for p in parts[:i]) for i, part in enumerate(parts)]),
            sum(part.n_segments for part in parts),
        )

    def first(self, n: int) -> Tokens:
        """The first n tokens of each sample."""
        return Tokens(
            self.x_BND[:, :n], self.modality_N[:n], self.present_BN[:, :n], self.segment_N[:n], self.n_segments
        )

    def replaced(self, x_BND: Tensor) -> Tokens:
        """The same tokens with other contents."""
        return dataclasses.replace(self, x_BND=x_BND)

    @classmethod
    def of(cls, x_BND: Tensor, modality: str, present_BN: Tensor | None = None) -> Tokens:
        """One segment of tokens of one modality; all present unless said otherwise."""
        b, n, _ = x_BND.shape
        modality_N = torch.full((n,), MODALITIES.index(modality), dtype=torch.int64, device=x_BND.device)
        if present_BN is None:
            present_BN = torch.ones(b, n, dtype=torch.bool, device=x_BND.device)
        return cls(x_BND, modality_N, present_BN, torch.zeros_like(modality_N))


class Attention(nn.Module):
    """Multi-head self-attention over all present tokens.

    Plain matrix products: at these lengths on a CPU the backward of the fused kernel is slower.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, present_BN: Tensor, readers: int) -> Tensor:
        """What the first ``readers`` tokens read from all tokens: (B, N, D) -> (B, readers, D)."""
        b, n, d = x_BND.shape
        q, k, v = self.qkv(x_BND).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q[:, :, :readers] * (d // self.heads) ** -0.5) @ k.transpose(-1, -2)
        scores = scores.masked_fill(~present_BN[:, None, None, :], float("-inf"))
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, readers, d))


@dataclass(frozen=True)
class Gating:
    """What the gates of one pass must know beside their tokens.

    Attributes:
        available_E: bool (E,), False for experts that are switched off in a study; None for all on.
        available_BE: bool (B, E), False for experts of a role whose sensors a sample lacks; None when all are there.
        instruction_BD: the sentence alone, before any picture (B, D), for gates that decide by it; None for others.
    """

    available_E: Tensor | None = None
    available_BE: Tensor | None = None
    instruction_BD: Tensor | None = None

    def available(self, sample_T: Tensor) -> Tensor | None:
        """bool (E,) or (T, E), for the tokens of these samples."""
        if self.available_BE is None:
            return self.available_E
        both_BE = self.available_BE if self.available_E is None else self.available_BE & self.available_E
        return both_BE[sample_T]


LONGEST_SEGMENT = 1 << 16
EXPERT_KINDS = {"convolution": ConvolutionExpert, "attention": AttentionExpert}


class FeedForward(nn.Module):
    """A feed-forward layer on a normalised copy of the tokens: experts behind a gate, or one dense network.

    Args:
        config: of the policy.
        layer: which feed-forward layer it is; 0 is the entry layer.
    """

    def __init__(self, config: PolicyConfig, layer: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.unit = config.routing_unit
        self.hear = nn.Linear(config.width, config.width, bias=False) if config.hears(layer) else None
        self.noisy = config.gate_noise or config.gate_jitter > 0
        self.ranks: Ranks = ALONE
        self.layer: nn.Module
        if config.is_sparse(layer):
            gate = GateConfig(
                experts_per_token=config.experts_per_token,
                kind=config.gate,
                prior=config.gate_prior,
                bias=config.gate_bias and config.routing_unit != "instruction",
                choice=config.gate_choice,
                jitter=config.gate_jitter,
                noisy=config.gate_noise,
                capacity_factor=config.capacity_factor,
                bias_balancing=config.bias_rate > 0,
            )
            kinds = {role: EXPERT_KINDS[kind] for role, kind in config.expert_kinds.items() if kind != "mlp"}
            self.layer = MoEFeedForward(
                config.width, config.hidden, config.experts, MODALITIES, gate, config.activation, kinds,
                config.shared_experts, config.routed_scale,
            )  # fmt: skip
        else:
            self.layer = FeedForwardExpert(config.width, config.dense_hidden, config.activation)

    def forward(self, tokens: Tokens, gating: Gating) -> tuple[Tensor, RoutingPlan | None]:
        """The layer's output (B, N, D), without the residual, zero for absent tokens; the plan is None when dense."""
        h_BND = self.norm(at_least_float32(tokens.x_BND))
        if not isinstance(self.layer, MoEFeedForward):
            return self.layer(h_BND), None
        # Only present tokens are routed, so padding costs nothing and is in no loss and no count. A graph that is
        # captured cannot ask which are there: it routes all, and what comes of absent ones is dropped.
        b, n, d = h_BND.shape
        x_TD, modality_T = h_BND.reshape(-1, d), tokens.modality_N.repeat(b)
        exporting = torch.compiler.is_exporting()
        all_go = exporting or bool(tokens.present_BN.all())
        rows_T = None if all_go else tokens.present_BN.reshape(-1).nonzero().squeeze(1)
        if rows_T is not None:
            x_TD, modality_T = x_TD.index_select(0, rows_T), modality_T[rows_T]
        if self.unit == "token" and self.hear is None and gating.available_BE is None:
            y_TD, plan = self.layer(x_TD, modality_T, gating.available_E, place_T=self._places(tokens, rows_T))
        else:
            row_T = torch.arange(b * n, device=x_TD.device) if rows_T is None else rows_T
            sample_T = row_T // n
            segment_T = sample_T * tokens.n_segments + tokens.segment_N.repeat(b)[row_T]
            units, n_segments = None, b * tokens.n_segments
            if self.unit == "segment" and exporting:
                absent_T = ~tokens.present_BN.reshape(-1)
                units = Units(segment_T.masked_fill(absent_T, n_segments), n_segments + 1)  # among themselves
            elif self.unit == "segment":
                units = Units(segment_T, n_segments)
            elif self.unit == "instruction":
                units = Units(sample_T, b, gating.instruction_BD)
            reads_TD = None if self.hear is None else x_TD + self.hear(gating.instruction_BD)[sample_T]
            available, place_T = gating.available(sample_T), self._places(tokens, rows_T)
            y_TD, plan = self.layer(x_TD, modality_T, available, units, segment_T, place_T, reads_TD)
        if rows_T is not None:
            y_TD = y_TD.new_zeros(b * n, d).index_copy(0, rows_T, y_TD)
        y_BND = y_TD.view(b, n, d)
        return (y_BND.masked_fill(~tokens.present_BN.unsqueeze(-1), 0.0) if exporting else y_BND), plan

    def _places(self, tokens: Tokens, rows_T: Tensor | None) -> Tensor | None:
        """int64 (T,), a number for each token that neither padding nor the number of processes changes; None where the
        gate does not ask."""
        if not (self.noisy and self.training and self.unit == "token"):
            return None
        b, n, segment_N = len(tokens.x_BND), len(tokens.segment_N), tokens.segment_N
        in_segment_N = torch.arange(n, device=segment_N.device) - torch.searchsorted(segment_N, segment_N)
        segment_BN = self.ranks.samples(b, segment_N.device).unsqueeze(1) * tokens.n_segments + segment_N
        place_T = (segment_BN * LONGEST_SEGMENT + in_segment_N).flatten()
        return place_T if rows_T is None else place_T[rows_T]


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added to the residual."""

    def __init__(self, config: PolicyConfig, layer: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = FeedForward(config, layer)

    def forward(self, tokens: Tokens, gating: Gating, keep: int | None = None) -> tuple[Tokens, RoutingPlan | None]:
        """One block. The plan is None for a dense feed-forward.

        With ``keep``, only the first ``keep`` tokens are carried on (they still read all): in the last block, tokens
        that nobody reads afterwards are not computed.
        """
        n = tokens.x_BND.shape[1] if keep is None else keep
        read_BND = self.attention(self.norm(tokens.x_BND), tokens.present_BN, n)
        tokens = tokens.first(n)
        tokens = tokens.replaced(tokens.x_BND + read_BND)
        y_BND, plan = self.feed_forward(tokens, gating)
        return tokens.replaced(tokens.x_BND + y_BND), plan


def sinusoid(x: Tensor, octaves: int) -> Tensor:
    """Fixed Fourier features of numbers in [-1, 1]: (..., n) -> (..., 2n * octaves). The slowest has a period of 4.

    A network learns smooth functions first; with these it can tell apart what lies close together (Tancik et al. 2020).
    """
    angles = x.unsqueeze(-1) * (2.0 ** torch.arange(octaves, device=x.device) * torch.pi / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
