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

from moe_policies.config import PolicyConfig
from moe_robot.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Features, FeatureStatistics, UserError

DEAD = 1e-4
"""An entry whose standard deviation is below this did not move in the data: it is centred and not scaled."""
AUGMENT_GROUPS = 8
"""A batch is augmented in this many groups, each with its own random draw: near to one per sample, and quick."""


class Processor(nn.Module):
    """Images uint8 (B, H, W, 3) -> (B, 3, H, W); images, state and action to zero mean and unit variance, and back."""

    def __init__(
        self, config: PolicyConfig, features: Features, statistics: Mapping[str, FeatureStatistics] | None
    ) -> None:
        super().__init__()
        self.cameras = tuple(features.cameras)
        sizes = {IMAGE_PREFIX + camera: 3 for camera in self.cameras}
        sizes |= {STATE: len(features.state_names), ACTION: len(features.action_names)}
        if config.places:
            sizes[ENVIRONMENT_STATE] = len(config.places)
        for key, size in sizes.items():
            mean, std = np.zeros(size), np.ones(size)  # placeholders of the right shape when a checkpoint fills them
            if statistics is not None:
                if key not in statistics:
                    raise UserError(
                        f"no statistics for {key!r}: the data set has them for {', '.join(sorted(statistics))}"
                    )
                mean, std = statistics[key].mean, statistics[key].std
                if np.shape(mean) != (size,):
                    raise UserError(f"statistics of {key!r} have shape {np.shape(mean)}, expected ({size},)")
            name = _buffer_name(key)
            self.register_buffer(f"{name}_mean", torch.as_tensor(np.asarray(mean), dtype=torch.float32))
            scale = np.where(np.asarray(std) < DEAD, 1.0, std)
            self.register_buffer(f"{name}_std", torch.as_tensor(scale, dtype=torch.float32))
        self._config, self._sizes = config, dict(features.cameras)

    def normalise(self, key: str, value: Tensor) -> Tensor:
        """Zero mean and unit variance over the last dimension (for images: the channel, given last)."""
        name = _buffer_name(key)
        return (value.float() - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")

    def unnormalise(self, key: str, value: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        name = _buffer_name(key)
        return value * getattr(self, f"{name}_std") + getattr(self, f"{name}_mean")

    def image(self, camera: str, frames_BHWC: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> normalised float (B, 3, H, W); augmented in training mode."""
        name = _buffer_name(IMAGE_PREFIX + camera)
        frames = frames_BHWC.permute(
            0, 3, 1, 2
        ).contiguous()  # planes first: broadcasting over 3 interleaved channels is slow
        if self.training and (augment := self._augment[camera]):
            frames = torch.cat([augment(group) for group in frames.chunk(AUGMENT_GROUPS)])
        mean, std = getattr(self, f"{name}_mean").view(3, 1, 1), getattr(self, f"{name}_std").view(3, 1, 1)
        return (frames - 255 * mean) * (1 / (255 * std))

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


def _buffer_name(key: str) -> str:
    return key.replace(".", "_").replace("-", "_")
