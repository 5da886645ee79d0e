"""Replays recorded episodes to a policy, open loop: what it would have done beside what was done.

At every frame the policy sees the recorded observation and plans; the plan is compared with the recorded actions that
followed. Nothing moves, so a small error is necessary for a good policy and not sufficient: a policy may agree with
every recorded step and still drift off when it acts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_robot.data.loader import Dataset
from moe_robot.types import (
    ACTION,
    ACTION_IS_PAD,
    IMAGE_PREFIX,
    STATE,
    TASK,
    Observation,
    Policy,
    UserError,
    action_chunk,
)


@dataclass(frozen=True)
class EpisodeReplay:
    """One episode: what the policy planned at each of its N frames for that frame (H actions in a plan, A entries).

    Attributes:
        episode: its number in the data set.
        task: name of its task, or the sentence.
        planned_NA: float32, the first action of every plan, in the environment's units.
        recorded_NA: float32, what was done.
        error_HA: float64, mean absolute error of the h-th action of the plans; NaN where no plan reached so far.
    """

    episode: int
    task: str
    planned_NA: np.ndarray
    recorded_NA: np.ndarray
    error_HA: np.ndarray


@dataclass(frozen=True)
class Replay:
    """All replayed episodes.

    Attributes:
        action_names: A names.
        episodes: one entry each.
        constant_A: float64, the mean absolute error that the best constant action would make on these frames.
    """

    action_names: tuple[str, ...]
    episodes: tuple[EpisodeReplay, ...]
    constant_A: np.ndarray

    @property
    def error_A(self) -> np.ndarray:
        """Mean absolute error of the actions for now, by entry, over all frames."""
        differences = [np.abs(each.planned_NA - each.recorded_NA) for each in self.episodes]
        return np.concatenate(differences).mean(axis=0, dtype=np.float64)

    @property
    def share_A(self) -> np.ndarray:
        """Error as a share of the best constant action's: 0 agrees, 1 has learned nothing; NaN where nothing moved."""
        return np.divide(
            self.error_A, self.constant_A, out=np.full_like(self.constant_A, np.nan), where=self.constant_A > 0
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict without the actions themselves."""
        per_episode = [
            {
                "episode": each.episode,
                "task": each.task,
                "frames": len(each.recorded_NA),
                "error": np.abs(each.planned_NA - each.recorded_NA).mean(axis=0).tolist(),
            }
            for each in self.episodes
        ]
        return {
            "action_names": list(self.action_names),
            "error": self.error_A.tolist(),
            "error_of_constant": self.constant_A.tolist(),
            "share": [None if np.isnan(value) else float(value) for value in self.share_A],
            "episodes": per_episode,
        }


def replay_episodes(
    policy: Policy,
    dataset: Dataset,
    episodes: Sequence[int] | None = None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Ask ``policy`` at every recorded frame, each alone as on a robot.

    Args:
        policy: with the features of the data set; one that does not plan ahead is asked for one action.
        dataset: opened with a horizon of the plan's length or less: plans are compared that far.
        episodes: numbers of episodes in the data set; all that ``dataset`` has when left out.
        on_frame: told (frames done, frames in all).

    Raises:
        UserError: the policy does not fit the data set, or an episode is not among the opened ones.
    """
    if reason := policy.features.mismatch(dataset.features):
        raise UserError(f"the policy does not fit {dataset.directory}: {reason}")
    numbers = dataset.episodes.index.tolist()
    for episode in episodes or ():
        if episode not in numbers:
            raise UserError(f"{dataset.directory}: episode {episode} is not among the {len(numbers)} that are open")
    chosen = numbers if episodes is None else list(episodes)
    lengths = dataset.episodes.stop - dataset.episodes.start
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    total, done, replayed = sum(int(lengths[numbers.index(e)]) for e in chosen), 0, []
    for episode in chosen:
        place = numbers.index(episode)
        planned, recorded, errors = [], [], []
        for index in range(int(first[place]), int(first[place] + lengths[place])):
            batch = dataset.batch([index])
            plan_HA = _plan(policy, batch)[: dataset.horizon]
            truth_HA, real_H = batch[ACTION][0], ~batch[ACTION_IS_PAD][0]
            error_HA = np.full(truth_HA.shape, np.nan)
            error_HA[: len(plan_HA)] = np.abs(plan_HA - truth_HA[: len(plan_HA)])
            error_HA[~real_H] = np.nan
            planned.append(plan_HA[0])
            recorded.append(truth_HA[0])
            errors.append(error_HA)
            done += 1
            on_frame(done, total)
        task = dataset.episodes.task[place]
        replayed.append(EpisodeReplay(episode, task, np.stack(planned), np.stack(recorded), _mean(np.stack(errors))))
    actions = np.concatenate([each.recorded_NA for each in replayed]).astype(np.float64)
    constant = np.abs(actions - np.median(actions, axis=0)).mean(axis=0)
    return Replay(dataset.features.action_names, tuple(replayed), constant)


def _plan(policy: Policy, batch: Mapping[str, Any]) -> np.ndarray:
    images = {key.removeprefix(IMAGE_PREFIX): value[0] for key, value in batch.items() if key.startswith(IMAGE_PREFIX)}
    return action_chunk(policy, Observation(images, batch[STATE][0], batch[TASK][0]))


def _mean(values_NHA: np.ndarray) -> np.ndarray:
    """Mean over N of what is there, NaN where nothing is."""
    there = ~np.isnan(values_NHA)
    count = there.sum(axis=0)
    return np.divide(
        np.where(there, values_NHA, 0).sum(axis=0), count, out=np.full(count.shape, np.nan), where=count > 0
    )
