"""Rolls a scripted expert out once, with disturbances, and records what it saw and what it would have done (DART).

DART (Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning", section 4): the executed action is
disturbed, the *clean* expert action is the label, so that the data shows states beside the ideal path together
with the way back.

DAgger (Ross et al. 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning"):
a learner drives part of the time, the label is the expert's action still, so that the data shows the states that the
learner itself gets into.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.data.layout import PNG
from moe_robot.data.record import EpisodeBuilder, EpisodeRecord
from moe_robot.registry import environment_features, load_policy
from moe_robot.types import Observation, Policy, UserError

KICK_RATE = 0.03
"""Chance per step that a kick begins: about every tenth step is then kicked."""
KICK_STEPS = 3
KICK_FACTOR = 3.0
"""A kick lasts this many steps, with this many times ``noise`` if nothing else is said: the rare large error that small
noise never shows."""

SEED_LIMIT = 10_000
"""Collection and training own the seeds below; tuning and reports own those from here on."""
TRIES_PER_LAYOUT = 3
LAYOUTS = 8


TURN_STEPS = 10
"""Usual length of a turn at the wheel."""


class Learner:
    """A policy that drives part of the time while the expert says what it would have done.

    Args:
        policy: its checkpoint or run.
        share: of the turns that are the policy's, in (0, 1].
        turn: control steps after which it is drawn anew whether the policy or the expert drives.
    """

    def __init__(self, policy: str | Path, share: float, turn: int = TURN_STEPS) -> None:
        import torch

        torch.set_num_threads(1)  # sums then have one order, and workers do not get in each other's way
        self.policy: Policy = load_policy(policy)
        self.share, self.turn = share, turn

    def begin(self, seed: int) -> None:
        """Before an episode."""
        import torch

        torch.manual_seed(seed)  # for heads that sample


@dataclass(frozen=True)
class Settings:
    """What decides every bit of a collection, apart from its length.

    Attributes:
        environment: Gymnasium id.
        options: keyword arguments of the environment.
        tasks: task names, in the order of the schedule.
        seed: episode i of every task starts from seed + i.
        noise: mean scale of the disturbance of the executed action, in the environment's unit of one step's travel.
            Each rollout draws its own scale uniformly from [0, 2 * noise].
        kick: scale of the kicks that come on top, None for ``KICK_FACTOR * noise``.
        instructions: instruction set of the sentences, None when the environment has no sets.
        successes_only: try again until the expert succeeds; False keeps the first rollout as it is.
        tail: steps that go on after success, so that the data shows what to do at the goal and beside it.
        codec: how frames are stored, see :class:`moe_robot.data.record.EpisodeBuilder`.
        policy: checkpoint of a learner that drives some of the turns, None for the expert alone.
        policy_share: of the turns, those that are the learner's.
        policy_turn: control steps of a turn.
        in_a_row: episodes of one task that are made one after another; the order of work alone, not of the data set.
    """

    environment: str
    options: Mapping[str, Any]
    tasks: tuple[str, ...]
    seed: int
    noise: float
    instructions: str | None
    successes_only: bool = True
    tail: int = 0
    codec: str = PNG
    policy: Path | None = None
    policy_share: float = 0.0
    kick: float | None = None
    in_a_row: int = 1
    policy_turn: int = TURN_STEPS

    def slot(self, number: int) -> tuple[str, int]:
        """Task and seed of the ``number``-th episode."""
        return self.tasks[number % len(self.tasks)], self.seed + number // len(self.tasks)

    def work_order(self, slots: Iterable[int]) -> list[int]:
        """``slots`` as they are best made: ``in_a_row`` of the first task, as many of the second, and so on."""
        n = len(self.tasks)
        return sorted(slots, key=lambda slot: (slot // n // self.in_a_row, slot % n, slot))


@dataclass(frozen=True)
class Rollout:
    """One rollout of the expert; ``episode`` holds its frames when it is to be kept."""

    success: bool
    episode: EpisodeRecord


def layout_seed(seed: int, attempt: int) -> int:
    """The environment seed of the ``attempt``-th rollout (from 0) for the episode that owns ``seed``.

    The first :data:`TRIES_PER_LAYOUT` rollouts keep the layout and draw new noise, so that hard layouts are not
    thrown away lightly. After that comes another layout, at a fixed stride and always below :data:`SEED_LIMIT`:
    two episodes never share one at the same try, and no seed of tuning or reports is ever touched.
    """
    retry = attempt // TRIES_PER_LAYOUT
    return seed if retry == 0 else (seed + 5_003 + 997 * (retry - 1)) % SEED_LIMIT


def demonstrate(
    env: Any,
    task: str,
    seed: int,
    attempt: int,
    settings: Settings,
    learner: Learner | None = None,
) -> Rollout:
    """Roll the expert of ``task`` out until success, failure or time-out. A pure function of its arguments.

    Args:
        env: a task environment (:class:`moe_robot.types.TaskEnvironment`).
        task: one of its tasks.
        seed: the episode's own seed, below :data:`SEED_LIMIT`.
        attempt: how many rollouts of this episode failed before.
        settings: of disturbance, sentences, tail and pictures.
        learner: who drives some of the turns, undisturbed.
    """
    inner = env.unwrapped
    make_expert = getattr(inner, "make_expert", None)
    if make_expert is None:
        raise UserError(f"environment {inner} has no scripted expert (make_expert): demonstrations need one")
    where = layout_seed(seed, attempt)
    rng = np.random.default_rng([seed, attempt, zlib.crc32(task.encode())])
    options: dict[str, Any] = {"task": task} if hasattr(inner, "tasks") else {}
    if settings.instructions is not None:
        options["instructions"] = settings.instructions
    observation, info = env.reset(seed=where, options=options or None)
    sentence = str(info.get("task") or getattr(inner, "task_description", "") or task)
    expert = make_expert(task)
    scale = float(rng.uniform(0.0, 2.0 * settings.noise))
    kick_scale = KICK_FACTOR * settings.noise if settings.kick is None else settings.kick
    features = environment_features(env)
    builder = EpisodeBuilder(features, settings.codec)
    kick, over, success, left = 0, False, False, settings.tail
    step, driving = 0, False
    if learner is not None:
        learner.begin(where)
    while not over:
        seen = Observation.from_gymnasium(observation, sentence)
        clean = np.asarray(expert.act(), dtype=np.float32)
        if seen.state is None:
            raise UserError(f"environment {inner} gives no agent_pos: demonstrations need the state")
        builder.add(seen.images, seen.state, clean, inner.environment_state() if features.environment_names else None)
        if learner is not None and step % learner.turn == 0:
            driving = bool(rng.random() < learner.share)
            learner.policy.reset()
        if learner is not None and driving:
            action = learner.policy.select_action(seen)
        else:
            if kick == 0 and rng.random() < KICK_RATE:
                kick = KICK_STEPS
            strength = max(scale, kick_scale) if kick else scale
            kick = max(0, kick - 1)
            action = expert.perturb(clean, strength, rng)
        observation, _, terminated, truncated, info = env.step(action)
        step += 1
        success = success or _succeeded(info)
        over = truncated or (left == 0 if success else terminated)
        left -= success
    extras = {"env_task": task, "seed": where, "success": success, "attempts": attempt + 1, "noise": scale}
    return Rollout(success, builder.finish(sentence, extras))


def _succeeded(info: Mapping[str, Any]) -> bool:
    if "success" not in info and "is_success" not in info:
        raise UserError(
            "the environment's info has neither 'success' nor 'is_success': demonstrations need one of them"
        )
    return bool(info.get("success", info.get("is_success")))


def demonstrate_until_success(
    env: Any,
    task: str,
    seed: int,
    settings: Settings,
    learner: Learner | None = None,
) -> EpisodeRecord:
    """The first successful rollout for ``seed``: new noise first, then other layouts (see :func:`layout_seed`).

    Raises:
        UserError: none of ``LAYOUTS * TRIES_PER_LAYOUT`` rollouts succeeded.
    """
    for attempt in range(LAYOUTS * TRIES_PER_LAYOUT):
        rollout = demonstrate(env, task, seed, attempt, settings, learner)
        if rollout.success:
            return rollout.episode
    way_out = "try less --noise" if learner is None else "try less --noise or a smaller --policy-share"
    raise UserError(
        f"the expert of {task!r} failed {LAYOUTS * TRIES_PER_LAYOUT} times in a row from seed {seed}"
        f" with noise {settings.noise}: {way_out}"
    )
