"""Prints a report as a table in the terminal, every rate with its interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moe_robot.evaluation.knockouts import heading, knocked_out, sensors_missing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_report(report: str | Mapping[str, Any], console: Console) -> None:
    """Print ``report.json`` (its text, or as read) to a rich console."""
    from rich.table import Table

    data: Mapping[str, Any] = json.loads(report) if isinstance(report, str) else report
    shuffled = "named_success" in data["overall"]
    told = f'all told "{data["instruction"]}"' if data.get("instruction") else f"instructions {data['instructions']}"
    table = Table(title=f"{data['preset'] or 'policy'} in {data['env']}, {told}".replace("[", r"\["))
    table.add_column("task", no_wrap=True)
    numbers = ("success [95 %]", "of", *(("named task done",) if shuffled else ()), "wrong", "timeout")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in {**data["tasks"], "overall": data["overall"]}.items():
        named = (_rate(row["named_success"], row["named_ci95"]),) if shuffled else ()
        if name == "overall":
            table.add_section()
        table.add_row(
            name,
            _rate(row["success_rate"], row["ci95"]),
            f"{row['successes']}/{row['episodes']}",
            *named,
            str(row["wrong"]),
            str(row["timeouts"]),
            style="bold" if name == "overall" else None,
        )
    for name, mean in tier_rows(data):
        table.add_row(name, _rate(mean["success_rate"], mean["ci95"]))
    console.print(table)
    experts = {knocked_out(name): row for name, row in data["knockouts"].items()}
    sensors = {sensors_missing(names): row for names, row in data.get("sensors_off", {}).items()}  # schema 1 had none
    for what, rows in ((heading(data["knockouts"]), experts), ("sensors switched off", sensors)):
        if rows:
            console.print(_without(what, rows))
    latency = data["latency_ms"]
    if latency:
        console.print(
            f"new action chunk: median {latency['p50']:.1f} ms, 95 % under {latency['p95']:.1f} ms, "
            f"longest {latency['max']:.1f} ms",
            highlight=False,
        )


def tier_rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and rate with interval of each tier, of the mean of the tasks and of the mean of the tiers; or nothing."""
    tiers = report.get("tiers")  # schema 2 had none
    if not tiers:
        return []
    tasks, means = report["task_mean"], report["tier_mean"]
    return [
        *((f"tier {tier.replace('_', ' ')}, {row['tasks']} tasks", row) for tier, row in tiers.items()),
        (f"mean of {tasks['tasks']} tasks", tasks),
        (f"mean of {means['tiers']} tiers", means),
    ]


def _without(what: str, rows: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"with {what}, on the same seeds")
    for name, justify in (
        ("", "left"),
        ("success [95 %]", "right"),
        ("of", "right"),
        ("change in points", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for name, row in rows.items():
        low, high = row["difference_ci95"]
        table.add_row(
            name,
            _rate(row["success_rate"], row["ci95"]),
            f"{row['successes']}/{row['episodes']}",
            f"{_points(-row['difference'])} [{_points(-high)}, {_points(-low)}]",
        )
    return table


def _rate(rate: float, ci95: Sequence[float]) -> str:
    return f"{100 * rate:.0f} % [{100 * ci95[0]:.0f}, {100 * ci95[1]:.0f}]"


def _points(difference: float) -> str:
    points = round(100 * difference)
    return f"{points:+d}" if points else "0"
