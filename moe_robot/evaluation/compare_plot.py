"""Draws the curves of a sweep: success against active FLOPs and against the latency of an action chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.evaluation.compare import Comparison, Row
from moe_robot.evaluation.journal import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(comparison: Comparison, speed: Mapping[str, Mapping[str, Any]], path: Path) -> Figure:
    """Write a PNG (and return its figure) with one line per sweep and a bootstrap interval at every point.

    Entries whose cost or speed is unknown are left out of that half.

    Raises:
        UserError: ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.subplots(1, 2, sharey=True)
    flops = {row.label: row.cost.total_flops / 1e6 for row in comparison.rows if row.cost}
    latency = {label: times["chunk_wall_ms"]["p50"] for label, times in speed.items()}
    lines: dict[str, list[Row]] = {}
    for row in comparison.rows:
        lines.setdefault(row.line, []).append(row)
    for axes, where, name in (
        (halves[0], flops, "active MFLOP per action chunk"),
        (halves[1], latency, "batch-1 latency of a chunk, ms"),
    ):
        for number, (line, rows) in enumerate(lines.items()):
            found = [(where[row.label], row) for row in rows if row.label in where]
            points = sorted(found, key=lambda point: point[0])
            x = [place for place, _ in points]
            y = [100 * row.success.value for _, row in points]
            below = [max(0.0, 100 * (row.success.value - row.ci95[0])) for _, row in points]
            above = [max(0.0, 100 * (row.ci95[1] - row.success.value)) for _, row in points]
            axes.errorbar(x, y, yerr=[below, above], label=line, color=f"C{number}", marker="o", ms=4, capsize=2)
        if where and max(where.values()) > 4 * min(where.values()):
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    halves[0].set_ylabel("success in %, 95 % bootstrap interval")
    halves[0].legend()
    with writing(path):
        figure.savefig(path, dpi=150)
    return figure
