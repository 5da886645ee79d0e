"""One rollout: a job in, an episode with its outcome, timings and routing out."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.registry import environment_features, load_policy, make_environment
from moe_robot.types import Observation, Policy, Routing, SensorSwitches, UserError

SHUFFLED = "shuffled"


@dataclass(frozen=True)
class Job:
    """What decides an episode: task, seed, and for the shuffled test the task that the sentence names.

    Attributes:
        knockout: the expert role that is switched off, or the part of the gate, or "" for all on.
        sensors_off: the sensors that are switched off, joined by "+", or "" for all on.
    """

    task: str
    seed: int
    named_task: str | None = None
    knockout: str = ""
    sensors_off: str = ""

    @property
    def name(self) -> str:
        """File name of the job's video and strip, without ending."""
        return f"{self.task}_{self.seed}"


@dataclass(frozen=True)
class Episode:
    """What happened in one job. Equality is about the outcome; the clock and the routing counts are left out of it.

    Attributes:
        sentence: the instruction that the policy read.
        success: the task was done (of the task that was meant, when shuffled).
        named_success: when shuffled, whether the task that the sentence named was done; else None.
        wrong: the environment ended the episode because something else was done.
        timeout: time ran out with neither.
        steps: control steps.
        latency_ms: wall time of each ``select_action`` in which the network ran.
        step_ms: wall time of each control step, policy and simulation together.
        routing: routes of all inferences of the episode, or None without a gate.
    """

    job: Job
    sentence: str
    success: bool
    named_success: bool | None
    wrong: bool
    timeout: bool
    steps: int
    latency_ms: tuple[float, ...] = field(compare=False)
    step_ms: tuple[float, ...] = field(compare=False)
    routing: Routing | None = field(compare=False)

    @property
    def verdict(self) -> str:
        """``success``, ``wrong``, ``time out`` or ``ended``."""
        if self.success:
            return "success"
        return "wrong" if self.wrong else "time out" if self.timeout else "ended"


@dataclass(frozen=True)
class Cast:
    """Who plays where: everything a process needs to run jobs. It can be pickled.

    Attributes:
        checkpoint: the folder with ``config.json``.
        environment: a Gymnasium id, made with ``options``.
        instructions: an instruction set of the environment, or "shuffled".
        instruction: the one sentence of every episode in place of the environment's own; None for its own.
        policy_factory: ``(checkpoint, device) -> Policy``.
    """

    checkpoint: Path
    environment: str
    options: Mapping[str, Any]
    instructions: str
    device: str
    policy_factory: Callable[[Path, str], Policy] = load_policy
    instruction: str | None = None


OnStep = Callable[[Observation, Routing | None, int], None]


def named_task(task: str, seed: int, tasks: Sequence[str]) -> str:
    """The task whose name the sentence takes in the shuffled test: one of the others, decided by seed and task."""
    others = [other for other in tasks if other != task]
    return others[int(np.random.default_rng([seed, zlib.crc32(task.encode())]).integers(len(others)))]


def sensor_names(joined: str) -> tuple[str, ...]:
    """``"front+wrist"`` -> ``("front", "wrist")``; nothing from nothing."""
    return tuple(joined.split("+")) if joined else ()


class Actor:
    """A policy and an environment in one process, ready to run jobs.

    Torch runs on one thread meanwhile: sums then have one order, so that an outcome depends on the job alone and not
    on how many workers share the machine.

    Raises:
        UserError: when the policy's features are not those of the environment.
    """

    def __init__(self, cast: Cast, rehearsal: Job) -> None:
        import torch

        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.cast = cast
        self.env: Any = None
        try:
            self.policy = cast.policy_factory(cast.checkpoint, cast.device)
            self.env = make_environment(cast.environment, **cast.options)
            reason = self.policy.features.mismatch(environment_features(self.env))
            if reason:
                raise UserError(
                    f"checkpoint {cast.checkpoint} does not fit {cast.environment}: {reason}; "
                    "give the options it was trained with (--env-options), or train on this environment"
                )
            self.roles = self._rehearse(rehearsal)
        except BaseException:
            self.close()
            raise

    def _rehearse(self, job: Job) -> tuple[str, ...] | None:
        """One untimed inference, so that no episode pays for warm-up. Returns the expert roles, None without a gate."""
        observation, sentence = self._reset(job)
        self.policy.reset()
        self.policy.select_action(Observation.from_gymnasium(observation, sentence))
        routing = self.policy.routing()
        return None if routing is None else tuple(dict.fromkeys(routing.roles))

    def _reset(self, job: Job) -> tuple[Any, str]:
        inner = self.env.unwrapped
        options: dict[str, Any] = {}
        if hasattr(inner, "tasks"):
            options["task"] = job.task
        if job.named_task is not None:
            options["named_task"] = job.named_task
        elif hasattr(inner, "instruction_sets"):
            options["instructions"] = self.cast.instructions
        observation, info = self.env.reset(seed=job.seed, options=options or None)
        sentence = self.cast.instruction or info.get("task", getattr(inner, "task_description", None))
        if sentence is None:
            raise UserError(
                f"environment {self.cast.environment} gives no instruction: expected a sentence in info['task']"
            )
        return observation, str(sentence)

    def run(self, job: Job, on_step: OnStep | None = None) -> Episode:
        """Play one episode. ``on_step(observation, routing, step)`` sees what the policy saw, and the last frame too.

        An episode ends when the environment ends it, or at the first step that reports success.
        """
        import torch

        policy = self.policy
        policy.disable_experts((job.knockout,) if job.knockout else ())
        if isinstance(policy, SensorSwitches):
            policy.disable_sensors(sensor_names(job.sensors_off))
        torch.manual_seed(job.seed)  # for heads that sample; a seeded episode is the same in any process
        observation, sentence = self._reset(job)
        policy.reset()
        latencies: list[float] = []
        durations: list[float] = []
        routing: Routing | None = None  # of the latest inference
        total: Routing | None = None
        success = named = wrong = False
        while True:
            seen = Observation.from_gymnasium(observation, sentence)
            before, start = policy.inference_count, time.perf_counter()
            action = policy.select_action(seen)
            thought = time.perf_counter()
            if policy.inference_count > before:
                latencies.append(1000 * (thought - start))
                routing = policy.routing()
                if routing is not None:
                    total = routing if total is None else total + routing
            if not np.isfinite(action).all():
                raise UserError(f"the policy gave a non-finite action at step {len(durations)}: {action}")
            if on_step:
                on_step(seen, routing, len(durations))
            acted = time.perf_counter()
            observation, _, terminated, truncated, info = self.env.step(action)
            durations.append(1000 * (thought - start + time.perf_counter() - acted))
            success = success or bool(self._told(info, "success", "is_success"))
            wrong = wrong or bool(info.get("wrong", False))
            if job.named_task is not None:
                named = named or bool(self._told(info, "named_success"))
            if terminated or truncated or success:
                break
        if on_step:
            on_step(Observation.from_gymnasium(observation, sentence), routing, len(durations))
        return Episode(
            job=job,
            sentence=sentence,
            success=success,
            named_success=named if job.named_task is not None else None,
            wrong=wrong,
            timeout=bool(truncated) and not success and not wrong,
            steps=len(durations),
            latency_ms=tuple(latencies),
            step_ms=tuple(durations),
            routing=total,
        )

    def _told(self, info: Mapping[str, Any], *keys: str) -> Any:
        for key in keys:
            if key in info:
                return info[key]
        raise UserError(f"environment {self.cast.environment} does not judge: expected info[{keys[0]!r}] at every step")

    def close(self) -> None:
        """Switch everything on again, close the environment and give torch its threads back."""
        import torch

        if self.env is not None:
            self.policy.disable_experts(())  # the policy may be somebody's live one, and a changed gate is no mask
            self.env.close()
        torch.set_num_threads(self._threads)
