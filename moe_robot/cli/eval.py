"""``moe-robot eval``: rolls a policy out and reports success with intervals."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from moe_robot.processes import Rank
from moe_robot.registry import parse_options

if TYPE_CHECKING:
    from moe_robot.evaluation.episode import Episode


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot eval``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, or a training run that holds one."""
    out: Path
    """Folder for report.json, report.html, episodes.jsonl and videos. An interrupted evaluation goes on from here."""
    env: str | None = None
    """Short name or Gymnasium id. Left out: the one that the checkpoint was trained in."""
    tasks: str | None = None
    """Tasks and groups, with commas between. Left out: those that the checkpoint was trained on."""
    episodes: int = 20
    """Episodes per task."""
    seed: int = 100_000
    """Seed of the first episode of each task; seeds below 100000 are for collecting, training and tuning."""
    instructions: str = "seen"
    """Which sentences: seen, heldout, newwords or another set of the environment; shuffled names another task than the
    one that is judged."""
    instruction: str | None = None
    """One sentence for every episode in place of the environment's own, also for a policy that `moe-robot extract` cut
    out and that follows no other. Each episode is judged by its task, so name the one that is meant with --tasks."""
    workers: int = 1
    """Processes. The outcome does not depend on it. More machines: the same command under torchrun, which gives each
    process its share."""
    envs: int = 1
    """Environments, spread over the workers, whose observations one network answers together, which takes less memory
    than a network in each worker and is quick on a GPU. 1: each worker asks a network of its own."""
    video: int = 0
    """How many episodes of each task to film, failures first."""
    knockout: str = ""
    """Expert roles, with commas between: the same episodes again without each of them. Also parts of a learned gate:
    gate.modality (its term per modality, which began as the bonus), gate.content (its weights on the token), gate.roles
    (each modality prefers another role's experts)."""
    sensors_off: str = ""
    """Sensors, with commas between: the same episodes again without each of them, for example front,wrist,arm,grasp or
    language; front+wrist is both at once."""
    knockout_episodes: int | None = None
    """Episodes per task for each knock-out and missing sensor, the first ones of the evaluation; all by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    env_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Override options that the checkpoint was trained with, for example objects=all size=128."""
    json: bool = False
    """Print report.json to standard output in place of the table."""


def listed(names: str) -> list[str]:
    """``"front, wrist"`` -> ``["front", "wrist"]``."""
    return [name for name in map(str.strip, names.split(",")) if name]


def run(options: Options) -> int:
    """Evaluate, print the table, say where the report is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from moe_robot.evaluation import evaluate
    from moe_robot.evaluation.knockouts import without
    from moe_robot.evaluation.statistics import Rate

    rank = Rank.of(os.environ)
    leads = rank is None or rank.rank == 0
    console = Console(stderr=options.json, quiet=not leads)
    outcomes: dict[str, list[bool]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        rows: dict[str, Any] = {}

        def count(episode: Episode, done: int, total: int) -> None:
            name = without(episode.job) or "episodes"
            if name not in rows:
                rows[name] = bar.add_task(name, total=total, rate="")
            seen = outcomes.setdefault(name, [])
            seen.append(episode.success)
            bar.update(rows[name], completed=done, rate=f"{done}/{total}  success {Rate.of(seen)}")

        evaluate(
            options.checkpoint,
            options.env,
            out=options.out,
            tasks=options.tasks,
            episodes=options.episodes,
            seed=options.seed,
            instructions=options.instructions,
            instruction=options.instruction,
            workers=options.workers,
            envs=options.envs,
            device=options.device,
            video=options.video,
            knockouts=listed(options.knockout),
            sensors_off=listed(options.sensors_off),
            knockout_episodes=options.knockout_episodes,
            environment_options=parse_options(options.env_options),
            progress=count,
            rank=rank,
        )
    if not leads:
        return 0
    text = (options.out / "report.json").read_text(encoding="utf-8")
    if options.json:
        sys.stdout.write(text)
    else:
        from moe_robot.evaluation.table import print_report

        print_report(text, console)
        console.print(f"{options.out / 'report.html'}", highlight=False)
    return 0
