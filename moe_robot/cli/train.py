"""``moe-robot train``: train a policy on demonstrations, with a progress bar; Ctrl-C keeps the state for --resume."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_robot.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from moe_robot.data.match import Row

Options = TrainConfig


def run(options: TrainConfig) -> int:
    """Train and print where the checkpoint is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from moe_robot.data.match import FeaturesDiffer
    from moe_robot.training.train import Progress as Now
    from moe_robot.training.train import train

    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} samples/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    bar = Progress(*columns, console=console, refresh_per_second=2)
    task = bar.add_task("training", total=1.0, step=0, loss=float("nan"), rate=0.0)

    def show(now: Now) -> None:
        if leads:
            bar.start()  # not before there is something to show
        bar.update(task, completed=now.fraction, step=now.step, loss=now.loss, rate=now.samples_per_second)

    try:
        record = train(with_tasks_named(options), show)
    except FeaturesDiffer as error:
        print_match(error.rows, console)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the state is kept in {options.out}, --resume goes on from there") from None
    finally:
        bar.stop()
    if not record:  # another process of torchrun says it
        return 0
    print(
        f"{record['preset']}: {record['parameters']:,} parameters, {record['steps']} steps, "
        f"{record['samples']:,} samples in {record['minutes']:.1f} min -> {options.out / 'checkpoint'}"
    )
    return 0


def print_match(rows: Sequence[Row], console: Console) -> None:
    """The table of what matched and what did not."""
    from rich.table import Table

    table = Table("", "needed", "found", "")
    for row in rows:
        table.add_row(row.kind, row.wanted or "-", row.found or "-", "" if row.fits else "does not fit")
    console.print(table, highlight=False)


def is_trained(run: Path) -> bool:
    """Whether training in this folder came to its end; its record then says so."""
    record = run / "checkpoint" / "train.json"
    return record.is_file() and json.loads(record.read_text())["complete"]


def with_tasks_named(options: TrainConfig) -> TrainConfig:
    """The same options with groups of tasks spelled out, as the environment of the demonstrations knows them."""
    from moe_robot.data.layout import read_info
    from moe_robot.registry import make_environment, select_tasks

    single = options.tasks and not options.data.is_file()  # a mixture has its tasks in its parts
    origin = read_info(options.data).provenance if single else {}
    if "environment" not in origin:
        return options
    env = make_environment(origin["environment"], **origin.get("options", {}))
    try:
        return dataclasses.replace(options, tasks=",".join(select_tasks(env, options.tasks or "")))
    finally:
        env.close()
