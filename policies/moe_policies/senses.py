"""What the policy senses: observations and batches are checked, and what is missing is told from what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_policies.config import PolicyConfig
from moe_policies.network import Inputs, split_by_role
from moe_policies.processor import Processor
from moe_robot.moe import ALONE, Ranks, fresh_key, uniform
from moe_robot.registry import unknown
from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Features, Observation, UserError


class Senses:
    """The sensors of one policy: the cameras, the state's parts ("arm", "grasp"), and "language" if it reads.

    Args:
        config: of the policy.
        features: of the policy.
        reads: whether it has a text encoder.
    """

    def __init__(self, config: PolicyConfig, features: Features, reads: bool) -> None:
        self.config, self.features, self.reads = config, features, reads
        self.state_parts = tuple(split_by_role(features.state_names, config.ignore_state))
        self.names = (*features.cameras, *self.state_parts, *(("language",) if reads else ()))
        self.absent: frozenset[str] = frozenset()

    def disable(self, names: Sequence[str]) -> None:
        """Treat these as missing from now on; empty switches all on.

        Raises:
            UserError: for an unknown name, or when nothing would be left.
        """
        for name in names:
            if name not in self.names:
                raise unknown("sensor", name, self.names)
        self._check_not_blind(names)
        self.absent = frozenset(names)

    def batch_of_one(self, observation: Observation) -> dict[str, Any]:
        """An observation as a batch of ``predict_action_chunk``, checked against the policy's features."""
        batch: dict[str, Any] = {}
        for camera, (height, width) in self.features.cameras.items():
            frame = observation.images.get(camera)
            if frame is None:
                if self.config.sensor_dropout:
                    continue
                there = ", ".join(map(repr, observation.images)) or "none"
                raise UserError(
                    f"the observation lacks camera {camera!r} (it has {there}): "
                    "the policy was trained with it always there; train with --config sensor_dropout=0.1 to do without"
                )
            if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                raise UserError(
                    f"camera {camera!r} gives {frame.dtype} {frame.shape}, expected uint8 ({height}, {width}, 3)"
                )
            batch[IMAGE_PREFIX + camera] = frame[None]
        n = len(self.features.state_names)
        if observation.state is not None or not self.config.sensor_dropout:
            shape = None if observation.state is None else observation.state.shape
            if observation.state is None or shape != (n,):
                names = ", ".join(self.features.state_names)
                raise UserError(f"the observation's state has shape {shape}, expected ({n},): {names}")
            batch[STATE] = observation.state[None]
        if self.reads and not observation.task:
            raise UserError("the observation has no instruction, and the policy was trained to read one: set its task")
        batch[TASK] = [observation.task or ""]
        return batch

    def batch(self, observations: Sequence[Observation]) -> dict[str, Any]:
        """Observations of several robots as one batch, each checked like :meth:`batch_of_one`.

        Raises:
            UserError: one does not fit, or they lack different sensors.
        """
        rows = [self.batch_of_one(observation) for observation in observations]
        keys = rows[0].keys()
        for row in rows:
            if row.keys() != keys:
                raise UserError(
                    f"one robot gives {', '.join(keys)} and another {', '.join(row)}: plan for each kind by itself"
                )
        joined: dict[str, Any] = {key: np.concatenate([row[key] for row in rows]) for key in keys if key != TASK}
        return joined | {TASK: [sentence for row in rows for sentence in row[TASK]]}

    def inputs(
        self,
        batch: Mapping[str, Any],
        processor: Processor,
        device: torch.device,
        training: bool,
        ranks: Ranks = ALONE,
    ) -> Inputs:
        """A batch as the network reads it, normalised; in training with ``sensor_dropout``, some sensors hidden."""
        images, absent, b = {}, set(self.absent), len(batch[TASK])
        for camera, (height, width) in self.features.cameras.items():
            key = IMAGE_PREFIX + camera
            if key in batch:
                frames = torch.as_tensor(batch[key]).to(device, non_blocking=True)
            elif self.config.sensor_dropout:
                absent.add(camera)
                frames = torch.zeros(b, height, width, 3, dtype=torch.uint8, device=device)
            else:
                raise unknown("key in the batch, which lacks", key, [k for k in batch if k.startswith(IMAGE_PREFIX)])
            images[camera] = processor.image(camera, frames)
        if STATE in batch or not self.config.sensor_dropout:
            state_BS = processor.normalise(STATE, torch.as_tensor(batch[STATE]).to(device, non_blocking=True))
        else:
            absent |= set(self.state_parts)
            state_BS = torch.zeros(b, len(self.features.state_names), device=device)
        self._check_not_blind(absent)
        present = {sensor: torch.zeros(b, dtype=torch.bool, device=device) for sensor in absent}
        if training and self.config.sensor_dropout:
            present = self.dropped(b, device, ranks)
        return Inputs(images, state_BS, self._sentences(batch), present)

    def dropped(self, b: int, device: torch.device, ranks: Ranks = ALONE) -> dict[str, Tensor]:
        """Sensor -> bool (B,): what each sample of a training batch keeps; never nothing but the sentence."""
        sensors = [sensor for sensor in self.names if sensor != "language"]
        keep_BS = uniform(fresh_key(), ranks.samples(b, device), len(sensors)) >= self.config.sensor_dropout
        keep_BS[:, 0] |= ~keep_BS.any(dim=1)
        return dict(zip(sensors, keep_BS.unbind(dim=1), strict=True))

    def _sentences(self, batch: Mapping[str, Any]) -> Sequence[str]:
        if only := self.config.only_instruction:
            for sentence in batch[TASK]:
                if sentence != only and "language" not in self.absent:
                    raise UserError(
                        f"this policy was cut out for {only!r} and follows nothing else, got {sentence!r}; to evaluate "
                        f'it give `moe-robot eval` the option --instruction "{only}"'
                    )
        return batch[TASK]

    def _check_not_blind(self, absent: Iterable[str]) -> None:
        if set(absent) >= set(self.names):
            raise UserError(f"all sensors are missing: expected at least one of {', '.join(self.names)}")
