"""Draws what ``moe-robot bench serve`` measured: latency against throughput, one line per way of batching."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.evaluation.journal import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = "osD^vP*X"


def plot(result: Mapping[str, Any], path: Path) -> Figure:
    """Write a PNG (and return its figure): a panel per preset, points labelled by the number of robots.

    Raises:
        UserError: ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = [row for row in result["rows"] if row["p95_ms"] is not None]
    names = list(dict.fromkeys(row["preset"] for row in rows))
    kinds = list(dict.fromkeys(row["way"] for row in rows))
    figure = Figure(figsize=(5.4 * len(names), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for number, way in enumerate(kinds):
            mine = [row for row in rows if (row["preset"], row["way"]) == (name, way)]
            x, y = [row["per_second"] for row in mine], [row["p95_ms"] for row in mine]
            axes.plot(x, y, color=f"C{number}", marker=MARKS[number % len(MARKS)], ms=4, lw=1.2, label=way)
            for row in mine if way == kinds[0] else mine[-1:] if way == kinds[-1] else ():
                place, text = (row["per_second"], row["p95_ms"]), str(row["robots"])
                axes.annotate(text, place, fontsize=8, color=f"C{number}", xytext=(4, 4), textcoords="offset points")
        periods = 2e3 / result["rate_hz"]
        axes.axhline(periods, color="0.5", ls="--", lw=1, label=f"two periods of {result['rate_hz']:g} Hz")
        axes.set(xscale="log", yscale="log", xlabel="answers per second, of all robots together", title=name)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("p95 from observation to plan, ms")
    panels[0].legend(fontsize=8)
    cores, load = result["machine"]["cores"], result["load"]
    figure.suptitle(
        f"policy server, 1 thread on {cores} cores under load {load['start']:g} to {load['end']:g}; "
        "numbers at the points: robots",
        fontsize=10,
    )
    with writing(path):
        figure.savefig(path, dpi=150)
    return figure
