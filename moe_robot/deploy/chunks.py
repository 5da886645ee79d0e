"""Chunks of actions on their way to the robot: each action in its time, overlaps blended, old chunks dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


class Plan(Protocol):
    """Which action is for now, of all that the policy has answered: :class:`ChunkBuffer` or :class:`JoinedChunks`."""

    def add(self, chunk: Chunk) -> None:
        """Take in an answer."""
        ...

    def clear(self) -> None:
        """Forget all: another episode, or another connection."""
        ...

    def action(self, now: float) -> tuple[np.ndarray, float] | None:
        """The action (A,) for this moment, and when the oldest observation that it answers was sensed; None without."""
        ...


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
        return index_of(chunk, now, self._period)

    def _reaches(self, chunk: Chunk, now: float) -> bool:
        return reaches(chunk, now, self._period, self._max_age)


class JoinedChunks:
    """Goes over from the plan that is being played to each new chunk within some control steps.

    What was to be done while the policy thought stays as it was planned, and from the answer on the share of the new
    chunk grows evenly. So does real-time chunking (Black et al. 2025, "Real-Time Execution of Action Chunking Flow
    Policies"), but there the network itself is made to go on from the actions that stay. A head that gives one answer
    (an L1 head) cannot be: here its numbers are averaged, and between two different ways around a thing lies the thing.
    """

    def __init__(self, period_s: float, max_age_s: float, steps: int) -> None:
        """An empty buffer; a chunk has taken over ``steps`` control steps after its first."""
        self._period, self._max_age, self._steps = period_s, max_age_s, steps
        self._chunks: list[tuple[Chunk, float | None]] = []  # with the moment that each was played first

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk; one that answers an older observation than the newest is dropped."""
        if not self._chunks or chunk.observed > self._chunks[-1][0].observed:
            self._chunks.append((chunk, None))

    def clear(self) -> None:
        """Forget all: another episode, or another connection."""
        self._chunks.clear()

    def action(self, now: float) -> tuple[np.ndarray, float] | None:
        """As of :class:`ChunkBuffer`."""
        begun = [(chunk, now if since is None else since) for chunk, since in self._chunks]
        playing = [(chunk, since) for chunk, since in begun if reaches(chunk, now, self._period, self._max_age)]
        taken_over = [i for i, (_, since) in enumerate(playing) if self._share(now - since) >= 1]
        playing = playing[taken_over[-1] if taken_over else 0 :]
        self._chunks = [*playing]
        if not playing:
            return None
        (first, _), *later = playing
        action = first.actions[index_of(first, now, self._period)]
        for chunk, since in later:
            share = self._share(now - since)
            action = (1 - share) * action + share * chunk.actions[index_of(chunk, now, self._period)]
        return action, first.observed

    def _share(self, playing_s: float) -> float:
        return min((round(playing_s / self._period) + 1) / (self._steps + 1), 1.0)


def index_of(chunk: Chunk, now: float, period_s: float) -> int:
    """Which action of the chunk is for now; it may lie beyond its end."""
    return max(round((now - chunk.observed) / period_s), 0)


def reaches(chunk: Chunk, now: float, period_s: float, max_age_s: float) -> bool:
    """Whether the chunk has an action for now and is not too old to be played."""
    return now - chunk.observed <= max_age_s and index_of(chunk, now, period_s) < len(chunk.actions)
