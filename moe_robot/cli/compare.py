"""``moe-robot compare``: trains or loads several policies on the same data and seeds, and puts them side by side.

A finished run is a small JSON in OUT/results that can be committed: whoever runs the same command again, here or on
another machine, only does the runs that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.cli.compare_options import Options
from moe_robot.types import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from moe_robot.cli.compare_entries import Entry
    from moe_robot.cli.compare_plan import Planned, Trial
    from moe_robot.cli.compare_run import Stage


def run(options: Options) -> int:
    """Do the runs that are missing, measure speed, print the tables."""
    from moe_robot.cli.compare_entries import parse_checkpoints, parse_entries
    from moe_robot.cli.compare_plan import planned, share
    from moe_robot.cli.compare_trial import make_trial

    entries = [*parse_entries(options.entries, options.sweep), *parse_checkpoints(options.load)]
    if options.only_table:
        return _show(options, sorted(options.out.glob("results/*-seed*.json")), [e.label for e in entries])
    _check(options, entries)
    trial = make_trial(options)
    runs = planned(entries, options.seeds, trial)
    missing = [one for one in runs if not one.is_finished()]
    mine = [one for one in share(runs, options.shard) if one in missing]
    _rehearse(mine, trial)
    _do(mine, len(runs))
    left = [one.name for one in runs if one.result() is None]
    speed: dict[str, Any] | None = None
    if options.speed and not left:
        from moe_robot.cli.compare_speed import speed_of

        speed = speed_of(entries, trial, options.speed_seconds)
    return _show(options, [one.result_path for one in runs], [entry.label for entry in entries], speed)


def _check(options: Options, entries: Sequence[Entry]) -> None:
    if not entries:
        raise UserError("nothing to compare: name presets after --entries, or checkpoints after --load")
    if options.episodes < 1 or (options.ablation_episodes is not None and options.ablation_episodes < 1):
        raise UserError("--episodes and --ablation-episodes: expected at least 1")
    if any(entry.checkpoint is None for entry in entries):
        if options.data is None:
            raise UserError("no demonstrations to train on: give --data, the folder that `moe-robot collect` wrote")
        if (options.steps is None) == (options.minutes is None):
            raise UserError("give the length of every training as either --steps N or --minutes M")
        if not options.seeds or len(set(options.seeds)) != len(options.seeds):
            raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: expected one or more, each once")


def _rehearse(runs: Sequence[Planned], trial: Trial) -> None:
    """Make every policy once: what is wrong with an entry is said before hours of training, not after."""
    from moe_robot.cli.compare_speed import fresh
    from moe_robot.evaluation.checks import check_sensors

    policies = [fresh(entry, trial) for entry in {run.entry.label: run.entry for run in runs}.values()]
    for names in trial.sensors_off:
        _refuse_what_none_can(policies, lambda policy, names=names: check_sensors([names], policy))
    for role in trial.knockouts:
        _refuse_what_none_can(policies, lambda policy, role=role: policy.disable_experts((role,)))


def _refuse_what_none_can(policies: Sequence[Any], switch_off: Callable[[Any], None]) -> None:
    """A dense policy has no gate, a blind one no language: left out there. A misspelt name is refused by all."""
    refusals: list[UserError] = []
    for policy in policies:
        try:
            switch_off(policy)
        except UserError as error:
            refusals.append(error)
    if refusals and len(refusals) == len(policies):
        raise refusals[0]


def _do(runs: Sequence[Planned], of: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from moe_robot.cli.compare_run import do
    from moe_robot.evaluation.compare import Run, compare

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    for number, one in enumerate(runs, 1):
        hidden = not console.is_terminal  # a log would get an empty line for every bar
        with Progress(*columns, console=console, refresh_per_second=2, transient=True, disable=hidden) as bar:
            try:
                result = do(one, _shown(bar, one.name))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{one.trial.out} keeps what was finished, the same command goes on from there"
                ) from None
        (row,) = compare([Run.from_json(result)], one.entry.label).rows
        console.print(f"{number}/{len(runs)} (of {of} in all) {one.name}: success {row.success}", highlight=False)


def _shown(bar: Progress, run: str) -> Stage:
    """Shows each stage of a run as a row of the progress bar."""
    rows: dict[str, Any] = {}

    def stage(name: str, fraction: float) -> None:
        if name not in rows:
            rows[name] = bar.add_task(f"{run}: {name}", total=1.0)
        bar.update(rows[name], completed=fraction)

    return stage


def _show(options: Options, paths: Sequence[Path], labels: Sequence[str], speed: dict[str, Any] | None = None) -> int:
    from rich.console import Console

    from moe_robot.cli.compare_plan import read_json
    from moe_robot.cli.compare_speed import stored_speed
    from moe_robot.evaluation.compare import Run, compare
    from moe_robot.evaluation.compare_table import grids, markdown, print_grids

    runs = [Run.from_json(read_json(path)) for path in paths if path.is_file()]
    runs = [run for run in runs if not labels or run.label in labels]
    missing = [path.stem for path in paths if not path.is_file()]
    told = {run.label for run in runs} | {name.rpartition("-seed")[0] for name in missing}
    missing += [f"{label} (every seed)" for label in labels if label not in told]
    if not runs:
        raise UserError(f"no result in {options.out / 'results'} yet: expected files LABEL-seedK.json")
    order = list(dict.fromkeys([*(labels or [options.baseline]), *(run.label for run in runs)]))
    comparison = compare(sorted(runs, key=lambda run: (order.index(run.label), run.seed)), options.baseline)
    speed = stored_speed(options.out) if speed is None else speed
    tables = grids(comparison, speed, options.per_task)
    console = Console(stderr=options.json)
    if not console.is_terminal:
        console = Console(stderr=options.json, width=160)  # in a log, a table of eighty columns would cut its words
    if any(row.line != row.label for row in comparison.rows):
        from moe_robot.evaluation.compare_plot import plot

        plot(comparison, speed, options.out / "curves.png")
        console.print(f"{options.out / 'curves.png'}", highlight=False)
    if options.markdown is not None:
        from moe_robot.evaluation.journal import write_atomically

        write_atomically(options.markdown, markdown(tables))
    if options.json:
        print(json.dumps({"schema": 1, **asdict(comparison), "speed": speed, "missing": missing}, indent=1))
    else:
        print_grids(tables, console)
    if missing:
        Console(stderr=True).print(f"still missing: {', '.join(missing)}", highlight=False)
    return 0
