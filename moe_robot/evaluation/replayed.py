"""How far a policy's actions are from recorded ones: it is asked about recorded observations, and nothing moves.

Whatever holds recordings gives :class:`RecordedStep`: a bag, a data set. A small difference says that the policy does
what was done; it does not say that the task would succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_robot.types import Observation, RecordedStep

Act = Callable[[Observation], np.ndarray]
"""From an observation to a chunk of actions (H, A)."""


@dataclass(frozen=True)
class Replayed:
    """The actions of a policy beside what was recorded. T steps, A entries.

    Attributes:
        names: of the entries.
        times: (T,) seconds of the recording.
        episodes: (T,) whole numbers.
        recorded: (T, A).
        answered: (T, A) what the policy says.
        skipped: steps for which the policy does not plan that far ahead.
    """

    names: tuple[str, ...]
    times: np.ndarray
    episodes: np.ndarray
    recorded: np.ndarray
    answered: np.ndarray
    skipped: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Per entry: mean and largest absolute difference, when the latter is, and the span of what was recorded.

        ``share`` is the mean as a share of what the best constant answer would be away (the median, for every step):
        0 agrees, 1 has learned nothing; None where nothing moved.
        """
        away = np.abs(self.answered - self.recorded)
        constant = np.abs(self.recorded - np.median(self.recorded, axis=0)).mean(axis=0)
        worst = away.argmax(axis=0)
        return [
            {
                "name": name,
                "mean": float(away[:, i].mean()),
                "share": float(away[:, i].mean() / constant[i]) if constant[i] > 0 else None,
                "max": float(away[worst[i], i]),
                "max_at": float(self.times[worst[i]]),
                "max_episode": int(self.episodes[worst[i]]),
                "recorded_min": float(self.recorded[:, i].min()),
                "recorded_max": float(self.recorded[:, i].max()),
            }
            for i, name in enumerate(self.names)
        ]


def replay(act: Act, names: tuple[str, ...], steps: Iterable[RecordedStep], most: int | None = None) -> Replayed:
    """Ask a policy about recorded observations, each once, in their order.

    Args:
        act: the policy; it is asked anew for each observation and must remember nothing.
        names: of the entries of what was recorded.
        steps: what was recorded.
        most: compare no more steps than this.

    Raises:
        ValueError: there was no step, or what was recorded has not one number per name.
    """
    rows: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    skipped = 0
    for step, chunk in _answers(act, steps):
        if step.ahead >= len(chunk):
            skipped += 1
            continue
        action = np.asarray(chunk[step.ahead], dtype=float)
        answer = action if step.as_recorded is None else step.as_recorded(action)
        rows.append((step.time, step.episode, np.asarray(step.recorded, dtype=float), answer))
        if most is not None and len(rows) == most:
            break
    if not rows:
        raise ValueError("nothing was recorded that the policy could be compared with")
    times, episodes, recorded, answered = zip(*rows, strict=True)
    stacked = np.stack(recorded)
    if stacked.shape[1:] != (len(names),):
        raise ValueError(f"{stacked.shape[1]} numbers were recorded for {len(names)} names")
    return Replayed(names, np.array(times), np.array(episodes), stacked, np.stack(answered), skipped)


def _answers(act: Act, steps: Iterable[RecordedStep]) -> Iterator[tuple[RecordedStep, np.ndarray]]:
    asked: Observation | None = None
    chunk = np.zeros((0, 0))
    for step in steps:
        if step.observation is not asked:
            asked, chunk = step.observation, act(step.observation)
        yield step, chunk
