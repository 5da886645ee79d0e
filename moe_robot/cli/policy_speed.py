"""Measures how fast policies act and learn: all of them in turn, call by call, so that what disturbs one disturbs all.

The observations are real ones of the environment; weights may be fresh, which changes no shape.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moe_robot.types import (
    ACTION,
    ACTION_IS_PAD,
    ENVIRONMENT_STATE,
    IMAGE_PREFIX,
    STATE,
    TASK,
    TASK_NAME,
    Features,
    FeatureStatistics,
    Observation,
)

BATCH = 64
MOST_ROUNDS = 300
"""Enough for a median: a call that is much quicker than the others does not make all of them be asked for minutes."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call: medians and 95 % quantiles of processor time and of wall time."""

    cpu: float
    cpu_p95: float
    wall: float
    wall_p95: float
    calls: int

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float]]) -> Times:
        """From (CPU seconds, wall seconds) of every call."""
        (cpu, wall), (cpu95, wall95) = np.percentile(np.asarray(rows), [50, 95], axis=0)
        return cls(float(cpu), float(cpu95), float(wall), float(wall95), len(rows))


def _as_loaded(policy: Any) -> Any:
    """A copy that keeps its experts as a loaded checkpoint does."""
    policy = copy.deepcopy(policy)
    return policy.stack_experts() if hasattr(policy, "stack_experts") else policy


class Act:
    """One new chunk for one observation."""

    def __init__(self, policy: Any, observation: Observation) -> None:
        self.policy, self.observation = _as_loaded(policy), observation

    def __call__(self) -> None:
        """Run it once."""
        self.policy.eval()
        self.policy.reset()
        self.policy.select_action(self.observation)


class ActBatched:
    """New chunks for ``BATCH`` observations at once."""

    def __init__(self, policy: Any, features: Features, observations: Sequence[Observation]) -> None:
        self.policy, self.batch = _as_loaded(policy), batch_of(features, observations)

    def __call__(self) -> None:
        """Run it once."""
        self.policy.eval()
        self.policy.predict_action_chunk(self.batch)


class Learn:
    """One optimiser step, as the training loop does it, each on other frames: no two batches load experts alike."""

    def __init__(self, policy: Any, features: Features, observations: Sequence[Observation]) -> None:
        from moe_robot.training.optimise import AveragedWeights, make_optimiser

        rng, horizon = np.random.default_rng(0), policy.config.chunk
        names = getattr(policy.config, "task_names", ())
        self.frames, self.draws = batch_of(features, observations), rng
        self.labels = {
            **({TASK_NAME: [names[i % len(names)] for i in range(BATCH)]} if names else {}),
            ENVIRONMENT_STATE: rng.normal(size=(BATCH, len(features.environment_names))).astype(np.float32),
            ACTION: rng.normal(size=(BATCH, horizon, len(features.action_names))).astype(np.float32),
            ACTION_IS_PAD: np.zeros((BATCH, horizon), bool),
        }
        self.policy = policy
        self.optimiser, self.average = make_optimiser(policy, 1e-4, 1e-2), AveragedWeights(policy, 0.998)

    def __call__(self) -> None:
        """Run it once."""
        from moe_robot.training.train import autocast, uses_bf16

        self.policy.train()
        rows = self.draws.integers(BATCH, size=BATCH)
        frames = {key: [of[i] for i in rows] if isinstance(of, list) else of[rows] for key, of in self.frames.items()}
        with autocast(self.policy.device, uses_bf16("auto", self.policy.device)):
            loss, _ = self.policy({**frames, **self.labels})
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimiser.step()
        self.policy.after_update(self.optimiser)
        self.average.update(self.policy, 1)


def batch_of(features: Features, observations: Sequence[Observation]) -> dict[str, Any]:
    """A batch of ``BATCH`` observations, as the training loop's data sets give it."""
    chosen = [observations[i % len(observations)] for i in range(BATCH)]
    return {
        **{IMAGE_PREFIX + camera: np.stack([o.images[camera] for o in chosen]) for camera in features.cameras},
        STATE: np.stack([o.state for o in chosen if o.state is not None]),
        TASK: [o.task for o in chosen],
    }


def alternate(calls: Mapping[str, Callable[[], None]], seconds: float) -> dict[str, Times]:
    """Times of each call, taken in turn until each has had its seconds of processor time, or ``MOST_ROUNDS``."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(2):
            call()
    for _ in range(MOST_ROUNDS):
        if min((sum(cpu for cpu, _ in rows) for rows in times.values()), default=seconds) >= seconds:
            break
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: Times.of(rows) for name, rows in times.items()}


def observations_of(env: Any, count: int = 16) -> list[Observation]:
    """First observations of ``count`` episodes."""
    tasks, found = getattr(env.unwrapped, "tasks", ()), []
    for seed in range(count):
        observation, info = env.reset(seed=seed, options={"task": tasks[seed % len(tasks)]} if tasks else None)
        found.append(Observation.from_gymnasium(observation, info.get("task", "do it")))
    return found


def any_statistics(features: Features) -> dict[str, FeatureStatistics]:
    """Some normalisation: times do not depend on it."""
    sizes = {IMAGE_PREFIX + camera: 3 for camera in features.cameras}
    sizes |= {STATE: len(features.state_names), ACTION: len(features.action_names)}
    sizes |= {ENVIRONMENT_STATE: len(features.environment_names)}
    return {
        key: FeatureStatistics(np.full(n, 0.5), np.full(n, 0.3), np.zeros(n), np.ones(n), 1) for key, n in sizes.items()
    }
