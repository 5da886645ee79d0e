"""``moe-robot demo``: the main job in one go: collect demonstrations, train on them, evaluate, report.

Each step is the verb of that name, so what the demo does can be done by hand. An interrupted demo goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moe_robot.registry import weights_sha256
from moe_robot.types import UserError

REPORT_SEED = 100_000  # seeds from here up are for reports only
UNIMPORTANT = {"out", "workers"}
"""Options that do not decide the outcome: a demo may be continued with other ones."""


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot demo``."""

    out: Path = Path("runs/demo")
    """Folder for the demonstrations, the run, report.html, report.json and videos."""
    env: str = "pitstop"
    """Environment: a short name or any Gymnasium id whose environment offers scripted experts."""
    env_options: tuple[str, ...] = ()
    """Options of the environment as KEY=VALUE."""
    tasks: str = "demo"
    """Tasks of the environment and groups of them, with commas between; in `pitstop` `demo` (five) or `all` (22)."""
    minutes: float = 9.0
    """Minutes of training."""
    steps: int | None = None
    """Train for this many optimiser steps in place of the minutes."""
    episodes_per_task: int = 400
    """Demonstrations of each task."""
    tail: int = 0
    """Control steps that are recorded after success."""
    noise: float = 0.3
    """Mean disturbance of the demonstrations, see `moe-robot collect`."""
    kick: float | None = None
    """Disturbance of their rare kicks, see `moe-robot collect`."""
    eval_episodes: int = 30
    """Fresh episodes of each task in the report."""
    seed: int = 0
    """Seed of the training. The demonstrations and the reported episodes are the same for every seed."""
    preset: str = "moe"
    """Policy preset: moe, dense-active, random, or one that another package brings."""
    config: tuple[str, ...] = ()
    """Policy settings as key=value, for example --config layers=2."""
    knockout: str = "vision,language"
    """Expert roles, or gate.modality, gate.content, gate.roles, with commas between: some episodes again without each
    (presets with a gate)."""
    knockout_episodes: int = 6
    """Episodes per task and knock-out."""
    video: int = 2
    """How many episodes of each task to film."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes for collecting and evaluating. The outcome does not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""


def run(options: Options) -> int:
    """Do the three steps that are not yet done, and say how long each took."""
    _claim(options)
    steps: tuple[tuple[str, Callable[[Options], int]], ...] = (
        (f"collecting {options.episodes_per_task} demonstrations of each task", _collect),
        (f"training the preset {options.preset!r} for {_length(options)}", _train),
        (f"evaluating {options.eval_episodes} fresh episodes of each task", evaluate),
    )
    minutes: list[str] = []
    for number, (title, step) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {title}", flush=True)
        started = time.monotonic()
        try:
            status = step(options)
        except KeyboardInterrupt:
            status = 130
        if status == 130:
            raise KeyboardInterrupt(f"{options.out} keeps what was finished, the same command goes on from there")
        if status:
            return status
        minutes.append(f"{title.split()[0]} {(time.monotonic() - started) / 60:.1f}")
    print(f"minutes: {', '.join(minutes)}")
    return 0


def _length(options: Options) -> str:
    return f"{options.minutes:g} minutes" if options.steps is None else f"{options.steps} steps"


def _claim(options: Options) -> None:
    """Note the options in the folder. A folder that holds a demo with other ones is refused: it would mix two runs."""
    wanted = {key: value for key, value in dataclasses.asdict(options).items() if key not in UNIMPORTANT}
    wanted = json.loads(json.dumps(wanted))  # as it will be read back
    note = options.out / "demo.json"
    if note.exists():
        try:
            theirs = json.loads(note.read_text())
        except json.JSONDecodeError:
            theirs = {}
        for key, value in wanted.items():
            if theirs.get(key) != value:
                option = "--" + key.replace("_", "-")
                raise UserError(
                    f"{options.out} holds a demo with {option} {theirs.get(key)}, now it is {value}: "
                    "give the same, choose another --out, or remove the folder"
                )
    options.out.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(wanted, indent=2) + "\n")
    part.replace(note)


def _collect(options: Options) -> int:
    from moe_robot.cli import collect

    return collect.run(
        collect.Options(
            env=options.env,
            env_options=options.env_options,
            tasks=options.tasks,
            episodes=options.episodes_per_task,
            tail=options.tail,
            noise=options.noise,
            kick=options.kick,
            out=options.out / "demonstrations",
            workers=options.workers,
        )
    )


def _train(options: Options) -> int:
    folder = options.out / "policy"
    from moe_robot.cli import train
    from moe_robot.training.checkpoint import has_state

    if train.is_trained(folder):
        print(f"trained already: {folder / 'checkpoint'}")
        return 0
    return train.run(
        train.Options(
            data=options.out / "demonstrations",
            out=folder,
            preset=options.preset,
            minutes=options.minutes if options.steps is None else None,
            steps=options.steps,
            seed=options.seed,
            device=options.device,
            config=options.config,
            resume=has_state(folder),
        )
    )


def _has_gate(folder: Path) -> bool:
    return json.loads((folder / "checkpoint" / "train.json").read_text())["routing"]["final"] is not None


def evaluate(options: Options) -> int:
    """Evaluate the policy in ``options.out``, unless its reports are there."""
    if is_reported(options.out, options.out / "policy"):
        from rich.console import Console

        from moe_robot.evaluation.table import print_report

        print_report((options.out / "report.json").read_text(encoding="utf-8"), Console())
        print(f"evaluated already: {options.out / 'report.html'}")
        return 0
    from moe_robot.cli import eval as verb

    return verb.run(
        verb.Options(
            checkpoint=options.out / "policy",
            out=options.out,
            env=options.env,
            tasks=options.tasks,
            episodes=options.eval_episodes,
            seed=REPORT_SEED,
            workers=options.workers,
            video=options.video,
            knockout=options.knockout if _has_gate(options.out / "policy") else "",  # nothing to knock out otherwise
            knockout_episodes=options.knockout_episodes,
            device=options.device,
        )
    )


def is_reported(out: Path, policy: Path) -> bool:
    """Whether both reports are in ``out`` and speak of ``policy`` as it is now."""
    if not ((out / "report.json").is_file() and (out / "report.html").is_file()):
        return False
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report["checkpoint_sha256"] == weights_sha256(policy)
