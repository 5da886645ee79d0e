"""``moe-robot inspect DIR`` on a data set: a table or JSON, a page with pictures and plots, and repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.cli.selection import CHOICES
from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.cli.inspect_options import Options
    from moe_robot.data.examine import Examination


def inspect_data(options: Options) -> int:
    """Examine or repair; returns 1 when some episode cannot be used."""
    for name in ("data", *CHOICES):
        if getattr(options, name):
            raise UserError(f"--{name} belongs to --routing: leave it out")
    if options.repair:
        return _repair(options)
    from moe_robot.data.durable import disk_errors, write_atomically
    from moe_robot.data.examine import examine
    from moe_robot.data.examine_page import page

    found = examine(options.checkpoint, options.videos)
    if options.out is not None:
        html, told = page(found), json.dumps(found.to_json(), indent=2)
        with disk_errors(options.out, kept="the data set is as it was"):
            write_atomically(options.out / "inspect.html", lambda path: _write(path, html))
            write_atomically(options.out / "inspect.json", lambda path: _write(path, told))
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_examination(found)
        if options.out is not None:
            print(f"{options.out}: inspect.html, inspect.json")
    return 1 if found.bad_episodes else 0


def _repair(options: Options) -> int:
    from moe_robot.data.repair import repair

    out = options.out or options.checkpoint.with_name(options.checkpoint.resolve().name + "-repaired")
    done = repair(options.checkpoint, out)
    if options.json:
        print(json.dumps({"out": str(out), "kept": done.kept, "lost": done.lost, "notes": done.notes}, indent=2))
    else:
        print(*done.notes, sep="\n")
        lost = f"lost: {', '.join(map(str, done.lost))}" if done.lost else "none is lost"
        print(f"{out}: {done.kept} episodes; {lost}; {options.checkpoint} is as it was")
    return 0


def print_examination(found: Examination) -> None:
    """Tables in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console, summary = Console(), found.summary
    about = Table(title=f"data set: {summary['data']}", show_header=False)
    about.add_column(no_wrap=True, style="bold")
    about.add_column()
    lengths = sorted(found.lengths)
    middle = lengths[len(lengths) // 2]
    rows: dict[str, Any] = {
        "format": f"LeRobot {summary['version']}, written by {summary['written_by']}",
        "robot": summary["robot"] or summary["environment"],
        "episodes": f"{summary['episodes']} of {lengths[0]} to {lengths[-1]} frames, median {middle}",
        "frames": f"{summary['frames']:,} at {summary['fps']} Hz, {summary['seconds'] / 60:.1f} min",
        "size": f"{summary['bytes'] / 1e6:.1f} MB",
    }
    for feature in found.features:
        if feature["dtype"] not in ("int64",):
            unused = "" if feature["used"] else "; not used here"
            rows[feature["name"]] = f"{feature['dtype']} {'x'.join(map(str, feature['shape']))}{unused}"
    for name, value in rows.items():
        if value:
            about.add_row(name, str(value))
    console.print(about, highlight=False)
    tasks = Table("task", "episodes", "frames", "for example")
    for row in found.tasks:
        tasks.add_row(row["task"], str(row["episodes"]), str(row["frames"]), row["example"])
    console.print(tasks, highlight=False)
    entries = Table(box=None, pad_edge=False)
    for name in ("", "entry", "min", "1 %", "mean", "99 %", "max", "histogram"):
        entries.add_column(name, no_wrap=True)
    for row in found.entries:
        numbers = [f"{row[name]:.3g}" for name in ("min", "q01", "mean", "q99", "max")]
        entries.add_row(row["feature"].rpartition(".")[2], row["name"], *numbers, _bars(row["histogram"]))
    console.print(entries, highlight=False)
    for problem in found.problems:
        few = ", ".join(map(str, problem.episodes[:12])) + (" ..." if len(problem.episodes) > 12 else "")
        console.print(f"{problem.kind}: {problem.message}" + (f" [episodes {few}]" if few else ""), markup=False)
    if not found.problems:
        console.print("no problems found")


def _bars(counts: list[int]) -> str:
    levels = " ▁▂▃▄▅▆▇█"
    pairs = [counts[i] + counts[i + 1] for i in range(0, len(counts) - 1, 2)]
    most = max(1, *pairs)
    return "".join(levels[-(-8 * n // most)] for n in pairs)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
