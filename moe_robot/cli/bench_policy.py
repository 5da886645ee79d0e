"""``moe-robot bench policy``: latency of a new action chunk on one core, and training samples per second on all cores.

The preset is measured beside ``dense-active`` in turn, step by step, so that the ratio holds on a machine that other
work disturbs. The pictures are real ones of the environment; weights are fresh, which changes no shape.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from moe_robot.types import (
    ACTION,
    ACTION_IS_PAD,
    ENVIRONMENT_STATE,
    IMAGE_PREFIX,
    STATE,
    TASK,
    Features,
    FeatureStatistics,
    Observation,
)

PEER = "dense-active"
BATCH = 64


def measure(env: Any, preset: str, device_name: str, seconds: float) -> dict[str, Any]:
    """Medians of CPU and wall time for ``preset`` and its dense peer, and their ratios. Closes ``env``."""
    import torch

    from moe_robot.registry import environment_features, presets, unknown
    from moe_robot.training.train import resolve_device

    found = presets()
    if preset not in found:
        raise unknown("preset", preset, found)
    device = resolve_device(device_name)
    try:
        features = environment_features(env)
        observations = _observations(env)
    finally:
        env.close()
    statistics = _statistics(features)
    sentences = [observation.task or "" for observation in observations]
    policies = {
        name: found[name].from_preset(name, features, statistics, sentences).to(device)
        for name in dict.fromkeys((preset, PEER))
    }
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    latency = _alternate({name: _Act(policy, observations[0]) for name, policy in policies.items()}, seconds)
    torch.set_num_threads(cores)
    training = _alternate({name: _Learn(policy, features, observations) for name, policy in policies.items()}, seconds)
    mine, peer = preset, PEER
    return {
        "preset": mine,
        "parameters": sum(p.numel() for p in policies[mine].parameters()),
        "chunk_cpu_ms": 1e3 * latency[mine][0],
        "chunk_wall_ms": 1e3 * latency[mine][1],
        "chunk_cpu_over_dense_active": latency[mine][0] / latency[peer][0],
        "training_samples_per_second": BATCH / training[mine][1],
        "training_samples_per_cpu_second": BATCH / training[mine][0],
        "training_cpu_over_dense_active": training[mine][0] / training[peer][0],
        "batch": BATCH,
        "threads": f"1 for a chunk, {cores} for training",
        "device": str(device),
        "load_average": os.getloadavg()[0],
    }


class _Act:
    """One new chunk for one observation."""

    def __init__(self, policy: Any, observation: Observation) -> None:
        self.policy, self.observation = policy, observation

    def __call__(self) -> None:
        self.policy.eval()
        self.policy.reset()
        self.policy.select_action(self.observation)


class _Learn:
    """One optimiser step, as the training loop does it."""

    def __init__(self, policy: Any, features: Features, observations: list[Observation]) -> None:
        from moe_robot.training.optimise import AveragedWeights, make_optimiser

        rng, chosen = np.random.default_rng(0), [observations[i % len(observations)] for i in range(BATCH)]
        horizon = policy.config.chunk
        self.batch = {
            **{IMAGE_PREFIX + camera: np.stack([o.images[camera] for o in chosen]) for camera in features.cameras},
            STATE: np.stack([o.state for o in chosen if o.state is not None]),
            TASK: [o.task for o in chosen],
            ENVIRONMENT_STATE: rng.normal(size=(BATCH, len(features.environment_names))).astype(np.float32),
            ACTION: rng.normal(size=(BATCH, horizon, len(features.action_names))).astype(np.float32),
            ACTION_IS_PAD: np.zeros((BATCH, horizon), bool),
        }
        self.policy = policy
        self.optimiser, self.average = make_optimiser(policy, 1e-4, 1e-2), AveragedWeights(policy, 0.998)

    def __call__(self) -> None:
        from moe_robot.training.optimise import clip_gradients
        from moe_robot.training.train import autocast, uses_bf16

        self.policy.train()
        with autocast(self.policy.device, uses_bf16("auto", self.policy.device)):
            loss, _ = self.policy(self.batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self.policy.parameters(), 1.0)
        self.optimiser.step()
        self.average.update(self.policy, 1)


def _alternate(calls: dict[str, Any], seconds: float) -> dict[str, tuple[float, float]]:
    """Median (CPU seconds, wall seconds) of each call, taken in turn until each has had its seconds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(2):
            call()
    while min(sum(cpu for cpu, _ in rows) for rows in times.values()) < seconds:
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (float(np.median([cpu for cpu, _ in rows])), float(np.median([wall for _, wall in rows])))
        for name, rows in times.items()
    }


def _observations(env: Any, count: int = 16) -> list[Observation]:
    found = []
    for seed in range(count):
        observation, info = env.reset(seed=seed)
        found.append(Observation.from_gymnasium(observation, info.get("task", "do it")))
    return found


def _statistics(features: Features) -> dict[str, FeatureStatistics]:
    sizes = {IMAGE_PREFIX + camera: 3 for camera in features.cameras}
    sizes |= {STATE: len(features.state_names), ACTION: len(features.action_names)}
    sizes |= {ENVIRONMENT_STATE: len(features.environment_names)}
    return {
        key: FeatureStatistics(np.full(n, 0.5), np.full(n, 0.3), np.zeros(n), np.ones(n), 1) for key, n in sizes.items()
    }
