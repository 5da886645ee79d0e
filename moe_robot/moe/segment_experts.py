"""Experts that see a whole frame or sentence at once: a convolution over a grid of patches, a transformer block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_robot.moe.experts import FeedForwardExpert


class ConvolutionExpert(nn.Module):
    """A depthwise 3 x 3 convolution over a frame's square grid of patches, then a feed-forward network, both residual.

    Its residual is inside, so it may stand where a layer has none. Takes camera tokens only.
    """

    takes_segments = True
    accepts = ("vision",)

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.feed_forward = FeedForwardExpert(width, hidden)

    def forward(self, x_RD: Tensor, segment_R: Tensor) -> Tensor:
        """Rows (R, D) of whole frames, those of one frame side by side in row-major order, -> (R, D)."""
        mixed = torch.empty_like(x_RD)
        for n, rows_SN in frames(segment_R):
            side = math.isqrt(n)
            if side * side != n:
                raise ValueError(f"a frame of {n} tokens is no square grid: expected P * P patches")
            x_SDPP = x_RD[rows_SN].transpose(1, 2).reshape(len(rows_SN), -1, side, side)
            mixed[rows_SN] = self.depthwise(x_SDPP).flatten(2).transpose(1, 2).to(x_RD.dtype)
        y_RD = x_RD + F.silu(mixed)
        return y_RD + self.feed_forward(y_RD)


class AttentionExpert(nn.Module):
    """A transformer block over the tokens of one segment: attention, then a feed-forward network, both residual."""

    takes_segments = True

    def __init__(self, width: int, hidden: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = FeedForwardExpert(width, hidden)

    def forward(self, x_RD: Tensor, segment_R: Tensor) -> Tensor:
        """Rows (R, D) of whole segments, those of one segment side by side, -> (R, D)."""
        read = torch.empty_like(x_RD)
        for n, rows_SN in frames(segment_R):
            d = x_RD.shape[1]
            q, k, v = self.qkv(x_RD[rows_SN]).view(-1, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            mixed = ((q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
            read[rows_SN] = self.out(mixed.transpose(1, 2).reshape(-1, n, d)).to(x_RD.dtype)
        y_RD = x_RD + read
        return y_RD + self.feed_forward(y_RD)


def frames(segment_R: Tensor) -> list[tuple[int, Tensor]]:
    """Segments by their length: (n, row indices (S, n)) for each length that occurs. Segments are runs of equal ids."""
    if segment_R.numel() == 0:
        return []
    _, lengths_S = torch.unique_consecutive(segment_R, return_counts=True)
    starts_S = lengths_S.cumsum(0) - lengths_S
    return [
        (n, starts_S[lengths_S == n].unsqueeze(1) + torch.arange(n, device=segment_R.device))
        for n in sorted(set(lengths_S.tolist()))
    ]
