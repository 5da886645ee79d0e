"""Between the edge and the network: normalise, augment, un-normalise; the same for simulation, data and robot.

Statistics are strict: a feature without them is refused by name. They are buffers, so the checkpoint carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_policies.bundled import SCRATCH
from moe_policies.config import PolicyConfig
from moe_robot.moe import ALONE, Ranks, fresh_key
from moe_robot.registry import unknown
from moe_robot.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Features, FeatureStatistics, UserError

DEAD = 1e-4
"""An entry whose standard deviation is below this did not move in the data: it is centred and not scaled."""
_PARTS = {STATE: "state", ACTION: "action", ENVIRONMENT_STATE: "places"}
AUGMENT_GROUPS = 8
"""A batch is augmented in this many groups, each with its own random draw: near to one per sample, and quick."""


def centre_and_scale(key: str, mode: str, statistics: FeatureStatistics) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted, then divided by, to normalise the feature ``key``; arrays of the shape of its mean.

    Args:
        key: for messages.
        mode: ``mean_std``: zero mean, unit variance; ``min_max``: extremes to -1 and 1; ``quantile``: the 1 % and 99 %
            quantiles to -1 and 1, so that rare wild values do not squeeze all others together; ``none``.
        statistics: of the feature.

    Raises:
        UserError: the statistics lack the quantiles that the mode needs.
    """
    if mode == "none":
        return np.zeros_like(statistics.mean), np.ones_like(statistics.mean)
    if mode == "mean_std":
        return statistics.mean, np.where(np.asarray(statistics.std) < DEAD, 1.0, statistics.std)
    if mode == "quantile" and not {"q01", "q99"} <= set(statistics.quantiles):
        raise UserError(f"no quantiles in the statistics of {key!r}: choose mean_std or min_max for it")
    quantiles = statistics.quantiles
    low, high = (quantiles["q01"], quantiles["q99"]) if mode == "quantile" else (statistics.min, statistics.max)
    half = (np.asarray(high) - low) / 2
    return np.asarray(low) + half, np.where(half < DEAD, 1.0, half)


class Processor(nn.Module):
    """Images uint8 (B, H, W, 3) -> (B, 3, H, W); images, state and action to values of a common size, and back.

    How is said per feature by the policy's ``normalisation``; by default to zero mean and unit variance. What is
    subtracted is kept as ``<feature>_mean``, what is divided by as ``<feature>_std``, whatever the way.
    """

    def __init__(
        self, config: PolicyConfig, features: Features, statistics: Mapping[str, FeatureStatistics] | None
    ) -> None:
        super().__init__()
        self.cameras = tuple(features.cameras)
        sizes = {IMAGE_PREFIX + camera: 3 for camera in self.cameras}
        sizes |= {STATE: len(features.state_names), ACTION: len(features.action_names)}
        if config.places:
            sizes[ENVIRONMENT_STATE] = len(config.places)
        for what in config.normalisation:
            if what not in (*_PARTS.values(), "images", *self.cameras):
                raise unknown("feature to normalise", what, (*_PARTS.values(), "images", *self.cameras))
        for key, size in sizes.items():
            mean, std = np.zeros(size), np.ones(size)  # placeholders of the right shape when a checkpoint fills them
            if statistics is not None:
                if key not in statistics:
                    raise UserError(
                        f"no statistics for {key!r}: the data set has them for {', '.join(sorted(statistics))}"
                    )
                if np.shape(statistics[key].mean) != (size,):
                    raise UserError(
                        f"statistics of {key!r} have shape {np.shape(statistics[key].mean)}, expected ({size},)"
                    )
                mean, std = centre_and_scale(key, _mode(config, key), statistics[key])
            name = _buffer_name(key)
            self.register_buffer(f"{name}_mean", torch.as_tensor(np.asarray(mean), dtype=torch.float32))
            self.register_buffer(f"{name}_std", torch.as_tensor(np.asarray(std), dtype=torch.float32))
        self._config, self._sizes = config, dict(features.cameras)
        self.ranks: Ranks = ALONE

    def normalise(self, key: str, value: Tensor) -> Tensor:
        """To values of a common size, by entry of the last dimension (for images: the channel, given last)."""
        name = _buffer_name(key)
        return (value.float() - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")

    def unnormalise(self, key: str, value: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        name = _buffer_name(key)
        return value * getattr(self, f"{name}_std") + getattr(self, f"{name}_mean")

    def image(self, camera: str, frames_BHWC: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> normalised float (B, 3, H, W); in training mode augmented, perhaps of another size."""
        name = _buffer_name(IMAGE_PREFIX + camera)
        frames = frames_BHWC.permute(
            0, 3, 1, 2
        ).contiguous()  # planes first: broadcasting over 3 interleaved channels is slow
        if self.training and (augment := self._augment[camera]):
            frames = self._augmented(frames, augment)
        if self.training and (heights := self._config.picture_heights):
            frames = _scaled(frames, heights[fresh_key() % len(heights)])
        mean, std = getattr(self, f"{name}_mean").view(3, 1, 1), getattr(self, f"{name}_std").view(3, 1, 1)
        return (frames - 255 * mean) * (1 / (255 * std))

    def _augmented(self, frames: Tensor, augment: Any) -> Tensor:
        """Each group of the whole batch with its own draw, whoever holds which part of it."""
        key, n = fresh_key(), len(frames)
        first, size = self.ranks.rank * n, -(-n * self.ranks.size // AUGMENT_GROUPS)
        parts, start = [], first
        with torch.random.fork_rng(devices=[]):
            while start < first + n:
                group = start // size
                stop = min((group + 1) * size, first + n)
                torch.manual_seed(key + group)
                parts.append(augment(frames[start - first : stop - first]))
                start = stop
        return torch.cat(parts)

    @cached_property
    def _augment(self) -> dict[str, Any]:
        """Camera -> torchvision transform, or None. Made at first use: acting need not import torchvision."""
        from torchvision.transforms import v2

        augment: dict[str, Any] = {}
        for camera, (height, width) in self._sizes.items():
            steps: list[Any] = []
            if self._config.shift:
                pad = max(1, round(self._config.shift * height / 96))
                steps.append(v2.RandomCrop((height, width), padding=pad, padding_mode="edge"))
            if self._config.jitter:
                steps.append(v2.ColorJitter(brightness=self._config.jitter, contrast=self._config.jitter))
            augment[camera] = v2.Compose(steps) if steps else None
        return augment


def _scaled(frames_BCHW: Tensor, height: int) -> Tensor:
    """Pictures of another height, and of the width that goes with it, the nearest multiple of 4."""
    from torchvision.transforms.v2.functional import resize

    h, w = frames_BCHW.shape[-2:]
    return resize(frames_BCHW, [height, max(4, 4 * round(w * height / h / 4))])


def _mode(config: PolicyConfig, key: str) -> str:
    """How to normalise a feature: a camera's own way before that of all images."""
    way = config.normalisation
    if key in _PARTS:
        return way.get(_PARTS[key], "mean_std")
    return way.get(
        key.removeprefix(IMAGE_PREFIX), way.get("images", "mean_std" if config.vision == SCRATCH else "none")
    )


def _buffer_name(key: str) -> str:
    return key.replace(".", "_").replace("-", "_")
