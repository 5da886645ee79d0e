"""The stems turn sensors into tokens: cameras, state, and the instruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_policies.config import PolicyConfig
from moe_policies.trunk import Tokens, sinusoid

SUMMARY_HEADS = 4


class Residual(nn.Module):
    """Two 3x3 convolutions added to their input. No batch or group norm: its backward is slow on a CPU at this size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # starts as the identity, which keeps the scale without a norm
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class CameraStem(nn.Module):
    """One camera: a convolutional feature map at a quarter of the resolution, and patch tokens pooled from it."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        c = config.stem_channels
        self.patches = config.patches
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, c // 2, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(c // 2, c, 3, stride=2, padding=1),
            Residual(c),
            nn.ReLU(),
        )
        self.project = nn.Linear(c, config.width)
        self.camera = nn.Parameter(torch.randn(config.width) * 0.02)
        self.position = nn.Parameter(torch.randn(config.patches**2, config.width) * 0.02)

    def forward(self, image: Tensor) -> tuple[Tokens, Tensor]:
        """Normalised image (B, 3, H, W) -> patch tokens (B, P*P, D) and the fine feature map (B, C, H/4, W/4)."""
        features = self.convolutions(image)
        pooled = F.adaptive_avg_pool2d(features, self.patches).flatten(2).transpose(1, 2)
        return Tokens.of(self.project(pooled) + self.camera + self.position, "vision"), features


class Summary(nn.Module):
    """What the sentence asks for: a few learned weightings of its words, side by side.

    A plain mean would drown the one word that matters among the polite ones.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.attend = nn.Linear(width, SUMMARY_HEADS)
        self.absent = nn.Parameter(torch.zeros(SUMMARY_HEADS * width))

    def forward(self, words_BWD: Tensor, present_BW: Tensor) -> Tensor:
        """(B, W, D) and bool (B, W) -> (B, SUMMARY_HEADS * D); a learned constant where there are no words."""
        if words_BWD.shape[1] == 0:
            return self.absent.expand(words_BWD.shape[0], -1)
        h_BWD = self.norm(words_BWD)
        scores_BWS = self.attend(h_BWD).float().masked_fill(~present_BW.unsqueeze(-1), float("-inf"))
        return (scores_BWS.softmax(dim=1).transpose(1, 2).to(h_BWD.dtype) @ h_BWD).flatten(1)


def unit(x: Tensor, dim: int) -> Tensor:
    """``x`` divided by its root mean square over ``dim``."""
    return x * torch.rsqrt(x.float().square().mean(dim=dim, keepdim=True) + 1e-6).to(x.dtype)


class Glimpse(nn.Module):
    """Looks into a camera's fine feature map where the instruction points.

    Each query is compared with every place of the map; the softmax over places gives an expected image position and
    the features there (a spatial softmax, Levine et al. 2016, whose channels are chosen by the sentence). Half of
    the queries come from the sentence, half are learned and fixed, for what matters in every task, such as the hand.
    """

    def __init__(self, config: PolicyConfig, queries_per_token: int = 4) -> None:
        super().__init__()
        c, self.n_tokens, self.per_token = config.stem_channels, config.glimpses, queries_per_token
        n = self.n_tokens * queries_per_token // 2
        self.key = nn.Conv2d(c, c, 1)
        self.asked = nn.Linear(config.width * SUMMARY_HEADS, n * c)
        self.fixed = nn.Parameter(torch.randn(n, c))
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.project = nn.Linear(queries_per_token * (c + 2 + 16), config.width)
        self.camera = nn.Parameter(torch.randn(self.n_tokens, config.width) * 0.02)

    def forward(self, features: Tensor, summary_BS: Tensor) -> Tokens:
        """Feature map (B, C, h, w) and sentence summary (B, SUMMARY_HEADS * D) -> glimpse tokens (B, G, D)."""
        b, c, h, w = features.shape
        key_BCP = self.key(features).flatten(2)
        asked_BQC = self.asked(summary_BS).view(b, -1, c)
        query_BQC = torch.cat([asked_BQC, self.fixed.to(asked_BQC.dtype).expand(b, -1, -1)], dim=1)
        # Both are brought to unit size, so that the softmax is neither flat nor saturated from the first step on.
        scores_BQP = unit(query_BQC, -1) @ unit(key_BCP, 1) * (self.scale * c**-0.5)
        attention_BQP = scores_BQP.float().softmax(dim=-1)
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, h, device=features.device),
            torch.linspace(-1, 1, w, device=features.device),
            indexing="ij",
        )
        place_P2 = torch.stack([x, y], dim=-1).view(-1, 2)
        with torch.autocast(features.device.type, enabled=False):  # bf16 would round the position to about a pixel
            place_BQ2 = attention_BQP @ place_P2
        seen_BQC = attention_BQP.to(features.dtype) @ features.flatten(2).transpose(1, 2)
        read = torch.cat([seen_BQC.float(), place_BQ2 * 2, sinusoid(place_BQ2, 16)], dim=-1)
        # A token holds asked and fixed queries alike: interleave the two halves.
        read = read.view(b, 2, self.n_tokens, self.per_token // 2, -1).transpose(1, 2).reshape(b, self.n_tokens, -1)
        return Tokens.of(self.project(read) + self.camera, "vision")


class StateStem(nn.Module):
    """State numbers of one kind (arm or grasp) to one token."""

    def __init__(self, modality: str, indices: Sequence[int], width: int) -> None:
        super().__init__()
        self.modality = modality
        self.indices: Tensor
        self.register_buffer("indices", torch.tensor(list(indices), dtype=torch.int64), persistent=False)
        self.layers = nn.Sequential(nn.Linear(len(indices), width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, state_BS: Tensor) -> Tokens:
        """Normalised state (B, S) -> one token (B, 1, D)."""
        return Tokens.of(self.layers(state_BS[:, self.indices]).unsqueeze(1), self.modality)


class TextStem(nn.Module):
    """The instruction to one token per word."""

    def __init__(self, encoder: nn.Module, config: PolicyConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Linear(int(encoder.width), config.width)  # type: ignore[arg-type]

    def forward(self, sentences: Sequence[str]) -> Tokens:
        """B sentences -> word tokens (B, W, D)."""
        hidden, mask = self.encoder(sentences)
        return Tokens.of(self.project(hidden), "language", mask)
