"""Recorded episodes as steps that a policy is asked about, open loop (:func:`moe_robot.evaluation.replayed.replay`).

Nothing moves, so a small error is necessary for a good policy and not sufficient: a policy may agree with every
recorded step and still drift off when it acts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moe_robot.data.loader import Dataset
from moe_robot.data.mixture import Mixture
from moe_robot.types import ACTION, IMAGE_PREFIX, STATE, TASK, Observation, RecordedStep


def recorded_steps(
    dataset: Dataset | Mixture,
    every: int = 1,
    instruction: str | None = None,
    on_frame: Callable[[int], None] = lambda done: None,
) -> Iterator[RecordedStep]:
    """Every frame of the opened episodes, in order.

    Args:
        dataset: opened with the episodes to go through, whatever its horizon.
        every: a policy is asked at every so many frames of an episode, and as many actions of its plan are compared.
        instruction: told to the policy in place of what was recorded.
        on_frame: told how many frames are done.

    Raises:
        ValueError: ``every`` is less than 1.
    """
    if every < 1:
        raise ValueError(f"every {every}: expected at least 1")
    episodes, fps, done = dataset.episodes, dataset.features.fps, 0
    for number, length in zip(episodes.index.tolist(), (episodes.stop - episodes.start).tolist(), strict=True):
        seen: Observation | None = None
        for frame in range(length):
            batch = dataset.batch(np.array([done]))
            if seen is None or frame % every == 0:
                images = {k.removeprefix(IMAGE_PREFIX): v[0] for k, v in batch.items() if k.startswith(IMAGE_PREFIX)}
                seen = Observation(images, batch[STATE][0], instruction or batch[TASK][0])
            yield RecordedStep(seen, batch[ACTION][0, 0], frame / fps, ahead=frame % every, episode=number)
            done += 1
            on_frame(done)
