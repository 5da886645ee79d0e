"""The parts of the trunk: tokens, attention, and the feed-forward in which a gate wakes two experts per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_policies.config import MODALITIES, PolicyConfig
from moe_robot.moe import MoEFeedForward, RoutingPlan, SwiGLU


@dataclass(frozen=True)
class Tokens:
    """A padded batch of tokens.

    Attributes:
        x_BND: (B, N, D).
        modality_N: int64 (N,), index into ``MODALITIES``; the same for every sample.
        present_BN: bool (B, N), False for padding and for what is missing. Absent tokens are neither attended to nor
            routed.
    """

    x_BND: Tensor
    modality_N: Tensor
    present_BN: Tensor

    @classmethod
    def concatenate(cls, parts: list[Tokens]) -> Tokens:
        """Join along N."""
        return cls(
            torch.cat([part.x_BND for part in parts], dim=1),
            torch.cat([part.modality_N for part in parts]),
            torch.cat([part.present_BN for part in parts], dim=1),
        )

    def first(self, n: int) -> Tokens:
        """The first n tokens of each sample."""
        return Tokens(self.x_BND[:, :n], self.modality_N[:n], self.present_BN[:, :n])

    def replaced(self, x_BND: Tensor) -> Tokens:
        """The same tokens with other contents."""
        return Tokens(x_BND, self.modality_N, self.present_BN)

    @classmethod
    def of(cls, x_BND: Tensor, modality: str, present_BN: Tensor | None = None) -> Tokens:
        """Tokens of one modality; all present unless said otherwise."""
        b, n, _ = x_BND.shape
        modality_N = torch.full((n,), MODALITIES.index(modality), dtype=torch.int64, device=x_BND.device)
        if present_BN is None:
            present_BN = torch.ones(b, n, dtype=torch.bool, device=x_BND.device)
        return cls(x_BND, modality_N, present_BN)


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


class FeedForward(nn.Module):
    """A feed-forward layer on a normalised copy of the tokens: experts behind a gate, or one dense network."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.layer: nn.Module
        if config.feed_forward == "moe":
            self.layer = MoEFeedForward(
                config.width,
                config.hidden,
                config.experts,
                MODALITIES,
                config.experts_per_token,
                config.gate_prior,
                config.gate_learned,
            )
        else:
            self.layer = SwiGLU(config.width, config.experts_per_token * config.hidden)

    def forward(self, tokens: Tokens, available_E: Tensor | None) -> tuple[Tensor, RoutingPlan | None]:
        """The layer's output (B, N, D), without the residual, zero for absent tokens; the plan is None when dense."""
        h_BND = self.norm(tokens.x_BND.float())
        if not isinstance(self.layer, MoEFeedForward):
            return self.layer(h_BND), None
        # Only present tokens are routed, so padding costs nothing and is in no loss and no count.
        b, n, d = h_BND.shape
        if bool(tokens.present_BN.all()):
            y_TD, plan = self.layer(h_BND.reshape(-1, d), tokens.modality_N.repeat(b), available_E)
            return y_TD.view(b, n, d), plan
        rows = tokens.present_BN.reshape(-1).nonzero().squeeze(1)
        modality_T = tokens.modality_N.repeat(b)[rows]
        y_TD, plan = self.layer(h_BND.reshape(-1, d).index_select(0, rows), modality_T, available_E)
        return y_TD.new_zeros(b * n, d).index_copy(0, rows, y_TD).view(b, n, d), plan


class Block(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added to the residual."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward = FeedForward(config)

    def forward(
        self, tokens: Tokens, available_E: Tensor | None, keep: int | None = None
    ) -> tuple[Tokens, RoutingPlan | None]:
        """One block. The plan is None for a dense feed-forward.

        With ``keep``, only the first ``keep`` tokens are carried on (they still read all): in the last block, tokens
        that nobody reads afterwards are not computed.
        """
        n = tokens.x_BND.shape[1] if keep is None else keep
        read_BND = self.attention(self.norm(tokens.x_BND), tokens.present_BN, n)
        tokens = tokens.first(n)
        tokens = tokens.replaced(tokens.x_BND + read_BND)
        y_BND, plan = self.feed_forward(tokens, available_E)
        return tokens.replaced(tokens.x_BND + y_BND), plan


def sinusoid(position: Tensor, width: int) -> Tensor:
    """Fixed Fourier features of positions in [-1, 1]: (..., 2) -> (..., width), width a multiple of 4."""
    octaves = 2.0 ** torch.arange(width // 4, device=position.device) * torch.pi / 2
    angles = position.unsqueeze(-1) * octaves
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
