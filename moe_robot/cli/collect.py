"""``moe-robot collect``: record demonstrations of scripted experts into a LeRobot v3 data set."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moe_robot.processes import Rank
from moe_robot.registry import parse_options

if TYPE_CHECKING:
    from moe_robot.data.collect import CollectReport


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot collect``."""

    env: str
    """Environment: a short name (pitstop) or any Gymnasium id whose environment offers scripted experts."""
    tasks: str
    """Comma-separated tasks and groups, for example press_red,pick_red_cube or demo or all."""
    episodes: int
    """Demonstrations per task, in all. Running again with more goes on where the data set ends."""
    out: Path
    """Directory of the data set."""
    seed: int = 0
    """Episode i of every task starts from seed + i. Collection owns the seeds below 10,000."""
    noise: float = 0.3
    """Mean disturbance of the executed action (the clean one is stored), in steps' travel; 0 for none."""
    kick: float | None = None
    """Disturbance of the rare kicks that come on top, of three steps each. Left out: three times the noise."""
    tail: int = 0
    """Control steps that are recorded after success, so that the data shows what to do at the goal and beside it."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes that collect side by side. The data set does not depend on it. More machines: the same command under
    torchrun, which gives each process its share."""
    env_options: tuple[str, ...] = ()
    """Options of the environment as KEY=VALUE, for example objects=all control_hz=20."""
    instructions: str = "seen"
    """Which set of instruction sentences to draw from."""
    images: Literal["png", "h264", "av1"] = "png"
    """How pictures are stored: each by itself without loss, or as a video per camera, a tenth of the size and a little
    changed."""
    policy: Path | None = None
    """A checkpoint that drives part of the time while the expert says at every step what it would have done (DAgger):
    the data then shows the states that this policy gets into. Train on it together with the demonstrations before."""
    policy_share: float = 0.5
    """Of the time, how much it drives."""
    policy_turn: int = 10
    """Control steps after which it is drawn anew who drives. Who shall learn from failing must be given time to."""
    keep_failures: bool = False
    """Store also rollouts in which the expert fails, instead of trying again."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> int:
    """Collect, with a progress bar on stderr and the result on stdout."""
    from rich.console import Console

    rank = Rank.of(os.environ)
    leads = rank is None or rank.rank == 0
    console = Console(stderr=True, quiet=not leads)
    try:
        report = _collect_with_bar(options, console, rank)
    except KeyboardInterrupt:
        again = shlex.join(["moe-robot", *sys.argv[1:]]) if sys.argv[1:2] == ["collect"] else "the same command"
        raise KeyboardInterrupt(f"finished episodes are kept in {options.out}. To go on: {again}") from None
    if not leads:
        return 0
    if options.json:
        print(json.dumps(_as_json(report), indent=2))
    else:
        print(_as_text(report))
    return 0


def _collect_with_bar(options: Options, console: Any, rank: Rank | None) -> CollectReport:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from moe_robot.data.collect import Progress as Step
    from moe_robot.data.collect import collect

    columns = (
        TextColumn("collecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}, {task.fields[failures]} failed rollouts,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    bar = Progress(*columns, console=console)
    row = bar.add_task("", total=None, rate="starting", failures=0)

    def show(step: Step) -> None:
        bar.start()  # only now, so that a refused option prints its one line and no empty bar
        rate = f"{60 * step.collected / (bar.tasks[row].elapsed or 1):.0f} episodes/min"
        bar.update(row, completed=step.done, total=step.total, rate=rate, failures=step.failures)

    try:
        return collect(
            options.env,
            options.tasks,
            options.episodes,
            options.seed,
            options.out,
            options=parse_options(options.env_options),
            noise=options.noise,
            kick=options.kick,
            workers=options.workers,
            instructions=options.instructions,
            successes_only=not options.keep_failures,
            tail=options.tail,
            codec=options.images,
            policy=options.policy,
            policy_share=options.policy_share,
            policy_turn=options.policy_turn,
            progress=show,
            rank=rank,
        )
    finally:
        bar.stop()


def _as_json(report: CollectReport) -> dict[str, Any]:
    return {
        "data": str(report.directory),
        "episodes": report.episodes,
        "frames": report.frames,
        "collected": report.collected,
        "failed_rollouts": dict(report.failures),
        "seconds": round(report.seconds, 2),
    }


def _as_text(report: CollectReport) -> str:
    if report.collected:
        rate = f"{60 * report.collected / report.seconds:.0f} episodes/min"
        new = f"{report.collected} new in {report.seconds:.0f} s ({rate})"
    else:
        new = "nothing new to collect"
    failed = ", ".join(f"{task} {count}" for task, count in report.failures.items()) or "none"
    return (
        f"{report.directory}: {report.episodes} episodes, {report.frames} frames; {new}\n"
        f"failed rollouts, tried again: {failed}"
    )
