"""What an evaluation was and what came of it: the record that the report is written from."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moe_robot.evaluation.episode import Episode


@dataclass(frozen=True)
class Setup:
    """What was evaluated and how; with the code versions it decides every outcome.

    Attributes:
        training: ``train.json`` beside the checkpoint's config (empty when there is none).
        preset: the policy's preset, as its config tells.
        environment_facts: what the made environment says of itself: objects, renderer, control rate.
        instruction: the one sentence that every episode got in place of the environment's; None for its own.
        envs: environments whose observations the network answers together; 1 for one at a time.
        ranks: processes that shared the evaluation out.
        tiers: tier of difficulty -> its tasks, where the environment tells any.
    """

    checkpoint: Path
    checkpoint_sha256: str
    preset: str | None
    environment: str
    environment_options: Mapping[str, Any]
    environment_facts: Mapping[str, Any]
    tasks: tuple[str, ...]
    episodes: int
    seed: int
    instructions: str
    device: str
    workers: int
    training: Mapping[str, Any]
    instruction: str | None = None
    tiers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    envs: int = 1
    ranks: int = 1


@dataclass(frozen=True)
class Results:
    """Every episode of an evaluation, by task and then seed; the first of them again with parts switched off.

    Attributes:
        out: the folder of the report.
        knockouts: expert role or part of the gate -> the episodes without it.
        sensors_off: sensors, joined by "+" -> the episodes without them.
        videos: file names in ``out/videos`` without ending (``.mp4`` and the strip ``.png``) -> their episode.
    """

    setup: Setup
    out: Path
    episodes: tuple[Episode, ...]
    knockouts: Mapping[str, tuple[Episode, ...]]
    sensors_off: Mapping[str, tuple[Episode, ...]]
    videos: Mapping[str, Episode]


def versions() -> dict[str, str | None]:
    """Python and the packages that decide an outcome; None for one that is not installed."""
    packages = {"moe_robot": "moe-robot", **{name: name for name in ("torch", "mujoco", "gymnasium", "numpy")}}
    return {"python": platform.python_version()} | {name: _version(package) for name, package in packages.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
