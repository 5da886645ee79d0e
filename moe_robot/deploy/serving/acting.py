"""Any policy, asked for the plans of several robots at once: one pass of the network where it can, else one by one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.deploy.exported import ONNX, ExportedPolicy, is_export
from moe_robot.deploy.inference import in_one_line
from moe_robot.deploy.serving.observations import Sensed
from moe_robot.registry import checkpoint_directory, load_policy, sha256
from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Features, Observation, UserError, action_chunk

Answer = np.ndarray | str
"""A plan (H, A), float32, or one line that says why there is none."""
UNSAID = "do it"
"""What a policy is asked when it is tried: every policy follows it somehow but one that was cut out for a sentence."""


class ServedPolicy:
    """A checkpoint, loaded and tried once.

    Args:
        checkpoint: a checkpoint folder, a training run, or what ``moe-robot export`` wrote.
        device: "cpu", "cuda" or "auto".
        threads: of the processor.

    Raises:
        UserError: it cannot be loaded, or fails on black pictures.
    """

    def __init__(self, checkpoint: Path, device: str, threads: int) -> None:
        if is_export(checkpoint):
            self.policy: Any = ExportedPolicy(checkpoint, threads)
            weights, config = checkpoint / ONNX, self.policy.manifest
            self.reads, self.needs_all = config.vocabulary is not None, True
            self._takes_batches = config.any_batch
        else:
            folder = checkpoint_directory(checkpoint)
            self.policy = _trained(folder, device, threads)
            weights, config = folder / "model.safetensors", getattr(self.policy, "config", None)
            self.reads = getattr(config, "text", "") != "none"
            self.needs_all = not getattr(config, "sensor_dropout", 0)
            self._takes_batches = hasattr(self.policy, "predict_action_chunk")
        self.sha256 = sha256(weights) if weights.is_file() else ""
        self.features: Features = self.policy.features
        self._only = getattr(config, "only_instruction", "") or UNSAID
        (trial,) = self.answer([self._black()])
        if isinstance(trial, str):
            raise UserError(f"the policy of {checkpoint} does not act: {trial}")
        self.chunk = len(trial)
        self.execute = min(getattr(config, "execute", None) or 1, self.chunk)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Run once with so many robots, so that the first of them do not pay for what is made at first use."""
        for size in sizes:
            self.answer([self._black()] * size)

    def answer(self, robots: Sequence[Sensed]) -> list[Answer]:
        """One answer per robot. A pass that fails is done again one by one, so that one robot spoils only its own."""
        if len(robots) > 1 and self._takes_batches:
            try:
                return self._told(self.policy.predict_action_chunk(_batch(robots)), len(robots))
            except Exception:  # whose fault it is, the loop below finds out
                pass
        return [self._one(robot) for robot in robots]

    def load(self) -> tuple[tuple[str, ...], np.ndarray] | None:
        """Experts, and routes of the latest pass to each per layer, int64 (L, E); None without a gate."""
        routing = self.policy.routing() if hasattr(self.policy, "routing") else None
        return None if routing is None else (routing.experts, routing.counts_LME.sum(axis=1))

    def _one(self, robot: Sensed) -> Answer:
        arrays = {key: value.copy() for key, value in robot.arrays.items()}  # views of a frame cannot be written to
        images = {k.removeprefix(IMAGE_PREFIX): v for k, v in arrays.items() if k.startswith(IMAGE_PREFIX)}
        try:
            actions = action_chunk(self.policy, Observation(images, arrays.get(STATE), robot.task))
            (answer,) = self._told(np.asarray(actions)[None], 1)
        except Exception as error:  # a stranger's policy may raise anything; the robot is told in one line
            return in_one_line(error)
        return answer

    def _told(self, actions_BHA: Any, robots: int) -> list[Answer]:
        if hasattr(actions_BHA, "cpu"):
            actions_BHA = actions_BHA.cpu().numpy()
        plans = np.asarray(actions_BHA, dtype=np.float32)
        if plans.ndim != 3 or len(plans) != robots or plans.shape[2] != len(self.features.action_names):
            raise ValueError(f"the policy gave actions of shape {plans.shape}, expected ({robots}, H, A)")
        return [plan if np.isfinite(plan).all() else "the policy gave actions that are not finite" for plan in plans]

    def _black(self) -> Sensed:
        arrays = {IMAGE_PREFIX + name: np.zeros((*size, 3), np.uint8) for name, size in self.features.cameras.items()}
        return Sensed({**arrays, STATE: np.zeros(len(self.features.state_names), np.float32)}, self._only)


def _batch(robots: Sequence[Sensed]) -> dict[str, Any]:
    """Observations with the same sensors as one batch in the policy's keys."""
    arrays = {key: np.stack([robot.arrays[key] for robot in robots]) for key in robots[0].arrays}
    return {**arrays, TASK: [robot.task or "" for robot in robots]}


def _trained(folder: Path, device: str, threads: int) -> Any:
    if device != "cpu":
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this machine has no CUDA GPU that torch can use; choose cpu")
        device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(folder, device=device)
    if "torch" in sys.modules:  # a stranger's policy may do without
        import torch

        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) - 1))  # one is left to the connections
    return policy
