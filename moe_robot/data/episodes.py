"""The table of episodes of a data set, and the rule by which some are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

VALIDATION_EVERY = 20
"""The 20th, 40th, ... episode of every task is for validation, the others for training: a rule of the data set alone,
the same for every run, and stable when a collection is continued."""


@dataclass(frozen=True)
class Episodes:
    """One entry per episode, in data set order.

    Attributes:
        index: int64, number of the episode in the data set.
        task: name of the environment's task; in a data set that knows none, the sentence.
        sentence: the instruction.
        start: int64, frame at which it begins.
        stop: int64, frame after its last.
        seed: int64, seed of the layout, -1 where unknown.
    """

    index: np.ndarray
    task: tuple[str, ...]
    sentence: tuple[str, ...]
    start: np.ndarray
    stop: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def where(self, chosen: np.ndarray) -> Episodes:
        """The episodes for which ``chosen`` (bool, one per episode) is true."""
        places = np.flatnonzero(chosen)
        return Episodes(
            self.index[places],
            tuple(self.task[i] for i in places),
            tuple(self.sentence[i] for i in places),
            self.start[places],
            self.stop[places],
            self.seed[places],
        )


def joined(parts: Sequence[Episodes], frames: Sequence[int]) -> Episodes:
    """The episodes of several data sets of ``frames`` frames as one; numbers and frames count on from set to set."""
    before = np.concatenate([[0], np.cumsum(frames)])[: len(parts)]
    episodes = np.concatenate([[0], np.cumsum([len(part) for part in parts])])[: len(parts)]
    return Episodes(
        np.concatenate([at + np.arange(len(part)) for at, part in zip(episodes, parts, strict=True)]),
        tuple(task for part in parts for task in part.task),
        tuple(sentence for part in parts for sentence in part.sentence),
        np.concatenate([at + part.start for at, part in zip(before, parts, strict=True)]),
        np.concatenate([at + part.stop for at, part in zip(before, parts, strict=True)]),
        np.concatenate([part.seed for part in parts]),
    )


def episodes_of(table: pa.Table) -> Episodes:
    """From the rows of ``meta/episodes`` (:func:`moe_robot.data.layout.read_episodes`)."""

    def column(name: str, default: Any) -> list:
        return table[name].to_pylist() if name in table.column_names else [default] * table.num_rows

    sentences = tuple(str(of[0]) if of else "" for of in column("tasks", None))
    return Episodes(
        index=np.array(column("episode_index", -1), dtype=np.int64),
        task=tuple(name or sentence for name, sentence in zip(column("env_task", None), sentences, strict=True)),
        sentence=sentences,
        start=np.array(column("dataset_from_index", 0), dtype=np.int64),
        stop=np.array(column("dataset_to_index", 0), dtype=np.int64),
        seed=np.array([-1 if seed is None else seed for seed in column("seed", None)], dtype=np.int64),
    )


def held_out(tasks: Sequence[str]) -> np.ndarray:
    """Bool per episode: whether it is for validation, by :data:`VALIDATION_EVERY`."""
    seen: dict[str, int] = {}
    held = np.zeros(len(tasks), dtype=bool)
    for i, task in enumerate(tasks):
        seen[task] = seen.get(task, 0) + 1
        held[i] = seen[task] % VALIDATION_EVERY == 0
    return held
