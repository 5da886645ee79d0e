"""Chunks of actions on their way to the robot: each action in its time, overlaps blended, old chunks dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """What a policy answered to one observation.

    Attributes:
        actions: (H, A), the first for the moment of the observation, each a control step after the one before.
        observed: when the observation was sensed, seconds.
    """

    actions: np.ndarray
    observed: float


class ChunkBuffer:
    """Gives the action for a moment from all chunks that reach it.

    Temporal ensembling (Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", section
    IV.B): the predictions for one moment are averaged with the weights exp(-decay · i), i = 0 for the oldest.
    """

    def __init__(self, period_s: float, max_age_s: float, decay: float | None = 0.01) -> None:
        """An empty buffer.

        Args:
            period_s: of a control step.
            max_age_s: a chunk that answers an observation older than this is dropped.
            decay: of the weights; 0 for a plain mean, None to follow the newest chunk alone.
        """
        self._period, self._max_age, self._decay = period_s, max_age_s, decay
        self._chunks: list[Chunk] = []

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk; one that answers an older observation than the newest goes to its place."""
        self._chunks.append(chunk)
        self._chunks.sort(key=lambda kept: kept.observed)

    def clear(self) -> None:
        """Forget all: another episode, or another connection."""
        self._chunks.clear()

    def action(self, now: float) -> tuple[np.ndarray, float] | None:
        """The action (A,) for this moment, and when the oldest observation that it answers was sensed; None without."""
        self._chunks = [chunk for chunk in self._chunks if self._reaches(chunk, now)]
        if not self._chunks:
            return None
        if self._decay is None:
            newest = self._chunks[-1]
            return newest.actions[self._index(newest, now)], newest.observed
        weights = np.exp(-self._decay * np.arange(len(self._chunks)))
        actions = np.stack([chunk.actions[self._index(chunk, now)] for chunk in self._chunks])
        return weights @ actions / weights.sum(), self._chunks[0].observed

    def _index(self, chunk: Chunk, now: float) -> int:
        return max(round((now - chunk.observed) / self._period), 0)

    def _reaches(self, chunk: Chunk, now: float) -> bool:
        return now - chunk.observed <= self._max_age and self._index(chunk, now) < len(chunk.actions)
