"""The world's half of an episode: a job is begun, actions go in, and what is seen and how it ends comes out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_robot.evaluation.roles import SHUFFLED, Cast, Episode, Job
from moe_robot.registry import make_environment
from moe_robot.types import Observation, Routing, UserError


@dataclass(frozen=True)
class Ending:
    """How an episode went, apart from what the policy knows of it. Fields as in :class:`Episode`."""

    sentence: str
    success: bool
    named_success: bool | None
    wrong: bool
    timeout: bool
    steps: int

    def episode(
        self, job: Job, latency_ms: tuple[float, ...], step_ms: tuple[float, ...], routing: Routing | None
    ) -> Episode:
        """The whole record, with the policy's part."""
        return Episode(
            job=job,
            sentence=self.sentence,
            success=self.success,
            named_success=self.named_success,
            wrong=self.wrong,
            timeout=self.timeout,
            steps=self.steps,
            latency_ms=latency_ms,
            step_ms=step_ms,
            routing=routing,
        )


class Stage:
    """One environment, playing one job after the other. It needs no torch.

    An episode ends when the environment ends it, or at the first step that reports success.
    """

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.env: Any = make_environment(cast.environment, **cast.options)
        self.ending: Ending | None = None
        """How the job ended; None while it is played."""

    def begin(self, job: Job) -> Observation:
        """Start a job: the first thing that is seen."""
        inner = self.env.unwrapped
        options: dict[str, Any] = {"task": job.task} if hasattr(inner, "tasks") else {}
        if job.named_task is not None:
            options["named_task"] = job.named_task
        if getattr(inner, "instruction_sets", ()) and self.cast.instructions != SHUFFLED:
            options["instructions"] = self.cast.instructions
        observation, info = self.env.reset(seed=job.seed, options=options or None)
        sentence = self.cast.instruction or info.get("task", getattr(inner, "task_description", None))
        if sentence is None:
            raise UserError(
                f"environment {self.cast.environment} gives no instruction: expected a sentence in info['task']"
            )
        self.sentence = str(sentence)
        self.steps, self.success, self.wrong = 0, False, False
        self.named = False if job.named_task is not None else None
        self.ending = None
        return Observation.from_gymnasium(observation, self.sentence)

    def step(self, action: np.ndarray) -> Observation:
        """Do one action: what is seen then. After the last one :attr:`ending` tells how it ended."""
        if not np.isfinite(action).all():
            raise UserError(f"the policy gave a non-finite action at step {self.steps}: {action}")
        observation, _, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        self.success = self.success or bool(self._told(info, "success", "is_success"))
        self.wrong = self.wrong or bool(info.get("wrong", False))
        if self.named is not None:
            self.named = self.named or bool(self._told(info, "named_success"))
        if terminated or truncated or self.success:
            timeout = bool(truncated) and not self.success and not self.wrong
            self.ending = Ending(self.sentence, self.success, self.named, self.wrong, timeout, self.steps)
        return Observation.from_gymnasium(observation, self.sentence)

    def play(self, actions: np.ndarray) -> tuple[Observation, list[float]]:
        """Do the actions (n, A), at least one, in turn until they are used up or the episode ends.

        Returns:
            what is seen then, and the wall time of each step, ms.
        """
        seen: Observation | None = None
        durations: list[float] = []
        for action in actions:
            start = time.perf_counter()
            seen = self.step(action)
            durations.append(1000 * (time.perf_counter() - start))
            if self.ending is not None:
                break
        assert seen is not None
        return seen, durations

    def _told(self, info: Mapping[str, Any], *keys: str) -> Any:
        for key in keys:
            if key in info:
                return info[key]
        raise UserError(f"environment {self.cast.environment} does not judge: expected info[{keys[0]!r}] at every step")

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
