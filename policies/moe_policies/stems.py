"""The stems turn sensors into tokens: cameras, state, and the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_policies.config import PolicyConfig
from moe_policies.trunk import Tokens, sinusoid
from moe_policies.vision import FrozenVision
from moe_robot.moe import at_least_float32

SUMMARY_HEADS = 4
PLACE_OCTAVES = 4
STATE_REACH = 2.0
"""Of normalised state numbers: what the slowest of their Fourier features is made for, either side of the mean."""


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
    """One camera: a convolutional feature map at a quarter of the resolution, and patch tokens pooled from it.

    With a frozen encoder, the map is the sum of what it says at three resolutions, each through a matrix of its own.
    """

    def __init__(self, config: PolicyConfig, encoder: FrozenVision | None = None) -> None:
        super().__init__()
        c = config.stem_channels
        self.patches, self.encoder = config.patches, encoder
        self.read: nn.ModuleList | None = None
        first: tuple[nn.Module, ...] = ()
        if encoder is None:
            first = (
                nn.Conv2d(3, c // 2, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(c // 2, c, 3, stride=2, padding=1),
            )
        else:
            self.read = nn.ModuleList(nn.Conv2d(channels, c, 1) for channels in encoder.channels)
        self.convolutions = nn.Sequential(*first, Residual(c), nn.ReLU())
        self.project = nn.Linear(c, config.width)
        self.camera = nn.Parameter(torch.randn(config.width) * 0.02)
        self.position = nn.Parameter(torch.randn(config.patches**2, config.width) * 0.02)

    def forward(self, image: Tensor) -> tuple[Tokens, Tensor]:
        """Normalised image (B, 3, H, W) -> patch tokens (B, P*P, D) and the fine feature map (B, C, H/4, W/4)."""
        x = image
        if self.encoder is not None and self.read is not None:
            fine, *coarser = [read(of) for read, of in zip(self.read, self.encoder(image), strict=True)]
            x = fine + sum(F.interpolate(of, fine.shape[-2:], mode="bilinear") for of in coarser)
        features = self.convolutions(x)
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
        h_BWD, some_B1 = self.norm(words_BWD), present_BW.any(dim=1, keepdim=True)
        hidden_BW1 = ~(present_BW | ~some_B1).unsqueeze(-1)  # a row without words keeps them: an empty softmax is NaN
        scores_BWS = at_least_float32(self.attend(h_BWD)).masked_fill(hidden_BW1, float("-inf"))
        heard_BS = (scores_BWS.softmax(dim=1).transpose(1, 2).to(h_BWD.dtype) @ h_BWD).flatten(1)
        return torch.where(some_B1, heard_BS, self.absent.to(heard_BS.dtype))


def unit(x: Tensor, dim: int) -> Tensor:
    """``x`` divided by its root mean square over ``dim``."""
    return x * torch.rsqrt(at_least_float32(x).square().mean(dim=dim, keepdim=True) + 1e-6).to(x.dtype)


@dataclass(frozen=True)
class Look:
    """What a glimpse found in one camera's picture.

    Attributes:
        tokens: (B, G, D).
        finds_BTR: of the things (B, n_things, R).
        scores_BTHW: how well each place fits each thing, before the softmax over places (B, n_things, h, w).
    """

    tokens: Tokens
    finds_BTR: Tensor
    scores_BTHW: Tensor


class Glimpse(nn.Module):
    """Finds things in a camera's fine feature map and reads there, half of it for what the instruction is about.

    A query is compared with every place of the map; the softmax over places gives an expected image position and the
    features there (a spatial softmax, Levine et al. 2016, as attention). Some queries are learned vectors, for what
    matters in every task, such as the hand; their finds are half of what the tokens hold. For the other half there are
    two ways, ``config.search``:

    - ``things``: further learned queries look for all things there are, and the sentence chooses among the finds: it
      weighs them. So finds are learned from every sample, whatever it asks for.
    - ``sentence``: the sentence makes the queries. So one query serves for whatever a sentence may call its object.

    Args:
        n_things: how many things the demonstrations tell the places of.
    """

    def __init__(self, config: PolicyConfig, n_things: int, reads_per_token: int = 4) -> None:
        super().__init__()
        c, s, self.n_tokens = config.stem_channels, config.width * SUMMARY_HEADS, config.glimpses
        self.n_half, self.n_things = self.n_tokens * reads_per_token // 2, n_things
        by_sentence = config.search == "sentence"
        n_more = max(self.n_half, n_things) if by_sentence else n_things
        n_queries = self.n_half + n_more
        self.key = nn.Conv2d(c, c, 1)
        self.queries = nn.Parameter(torch.randn(n_queries, c))
        self.ask = nn.Linear(s, n_more * c, bias=False) if by_sentence else None
        self.point = None if by_sentence else nn.Linear(s, self.n_half * n_queries)
        if self.ask is not None:
            nn.init.normal_(self.ask.weight)  # its input is scaled down instead, which keeps Adam's steps small
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.project = nn.Linear(reads_per_token * self.read_width(config), config.width)
        self.camera = nn.Parameter(torch.randn(self.n_tokens, config.width) * 0.02)

    @staticmethod
    def read_width(config: PolicyConfig) -> int:
        """R, the width of one find: features, place, and the place's Fourier features."""
        return config.stem_channels + 2 + 2 * 2 * PLACE_OCTAVES

    def forward(self, features: Tensor, summary_BS: Tensor) -> Look:
        """Look into a feature map (B, C, h, w) with a sentence's summary (B, SUMMARY_HEADS * D)."""
        b, c, h, w = features.shape
        key_BCP = self.key(features).flatten(2)
        # Both are brought to unit size, so that the softmax is neither flat nor saturated from the first step on.
        queries = unit(self._queries(summary_BS), -1).to(key_BCP.dtype)
        scores_BQP = queries @ unit(key_BCP, 1) * (self.scale * c**-0.5)
        attention_BQP = at_least_float32(scores_BQP).softmax(dim=-1)
        with torch.autocast(features.device.type, enabled=False):  # bf16 would round the position to about a pixel
            place_BQ2 = attention_BQP @ image_places(h, w, features.device).to(attention_BQP.dtype)
            seen_BQC = attention_BQP.to(features.dtype) @ features.flatten(2).transpose(1, 2)
            finds_BQR = torch.cat(
                [at_least_float32(seen_BQC), place_BQ2 * 2, sinusoid(place_BQ2, PLACE_OCTAVES)], dim=-1
            )
            common_BQR, more_BQR = finds_BQR.split([self.n_half, finds_BQR.shape[1] - self.n_half], dim=1)
            if self.point is None:
                meant_BAR = more_BQR[:, : self.n_half]
            else:
                weights_BAQ = self.point(at_least_float32(summary_BS)).view(b, self.n_half, -1).softmax(dim=-1)
                meant_BAR = weights_BAQ @ finds_BQR
        # Every token holds both kinds: interleave the two halves.
        reads = torch.stack([meant_BAR, common_BQR], dim=1)
        reads = reads.view(b, 2, self.n_tokens, -1, reads.shape[-1]).transpose(1, 2).reshape(b, self.n_tokens, -1)
        things = slice(self.n_half, self.n_half + self.n_things)
        return Look(
            Tokens.of(self.project(reads) + self.camera, "vision"),
            finds_BQR[:, things],
            scores_BQP[:, things].unflatten(-1, (h, w)),
        )

    def _queries(self, summary_BS: Tensor) -> Tensor:
        """(Q, C), or (B, Q, C) where the sentence makes some of them."""
        if self.ask is None:
            return self.queries
        b, s = summary_BS.shape
        asked_BQC = self.ask(summary_BS * s**-0.5).view(b, -1, self.queries.shape[-1])
        return torch.cat(
            [self.queries[: self.n_half].expand(b, -1, -1), self.queries[self.n_half :] + asked_BQC], dim=1
        )


@lru_cache(maxsize=16)
def image_places(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2): x and y of every place of a map, in [-1, 1], row by row."""
    with torch.inference_mode(False):  # it is kept, and may be used in training next
        y, x = torch.linspace(-1, 1, height, device=device), torch.linspace(-1, 1, width, device=device)
        return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).view(-1, 2)


class StateStem(nn.Module):
    """State numbers of one kind (arm or grasp) to one token.

    Args:
        octaves: Fourier features of each number that stand beside it; 0 for the number alone.
    """

    def __init__(self, modality: str, indices: Sequence[int], width: int, octaves: int = 0) -> None:
        super().__init__()
        self.modality, self.octaves = modality, octaves
        self.indices: Tensor
        self.register_buffer("indices", torch.tensor(list(indices), dtype=torch.int64), persistent=False)
        n = len(indices) * (1 + 2 * octaves)
        self.layers = nn.Sequential(nn.Linear(n, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, state_BS: Tensor) -> Tokens:
        """Normalised state (B, S) -> one token (B, 1, D)."""
        x = state_BS[:, self.indices]
        if self.octaves:
            x = torch.cat([x, sinusoid(x / STATE_REACH, self.octaves)], dim=-1)
        return Tokens.of(self.layers(x).unsqueeze(1), self.modality)


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
