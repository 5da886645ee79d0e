"""Draws the routing report as heat maps: per layer who goes where, how busy experts are, and what sways them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_robot.evaluation.journal import writing
from moe_robot.evaluation.video import RGB, role_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#262c34", "#7a828c"
CELL, TALL = 0.46, 0.34
"""Width and height of a heat map's cell in inches."""
WIDEST = CELL * 20
LABELLED = 20
"""With more experts than this, cells are too narrow for numbers."""


def draw_routing(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture of ``routing.json``: a column per layer, a row per question."""
    from matplotlib.figure import Figure

    layers = report["layers"]
    rows = ((_modalities, report["modalities"]), (_load, ()), (_phases, report["phases"]), (_tasks, report["tasks"]))
    talls = [max(1.5, TALL * len(names)) for _, names in rows]
    wide = min(WIDEST, max(2.9, CELL * len(report["experts"])))
    left = 0.085 * max(len(name) for _, names in rows for name in names) + 0.5
    head, foot, below, between = 1.25, 0.45, 1.2, 0.75
    width = left + len(layers) * (wide + between)
    height = head + foot + sum(talls) + below * len(rows)
    figure = Figure(figsize=(width, height), dpi=110, facecolor="#fafaf8")
    _heading(figure, report, width, height)
    y = height - head
    for (draw, _), tall in zip(rows, talls, strict=True):
        for i, layer in enumerate(layers):
            x = left + i * (wide + between)
            axes = figure.add_axes((x / width, (y - tall) / height, wide / width, tall / height))
            draw(axes, layer, report)
            if i and draw is not _load:
                axes.set_yticklabels([])
        y -= tall + below
    with writing(path):
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png")
        part.replace(path)


def _heading(figure: Figure, report: Mapping[str, Any], width: float, height: float) -> None:
    name = report.get("preset") or "policy"
    figure.text(0.3 / width, 1 - 0.38 / height, f"Routing of {name}", size=15, color=INK, weight="bold")
    looked_at = f"{report['frames']} frames of {report['episodes']} episodes ({report['split']})"
    said = (
        f"{looked_at}, {len(report['tasks'])} tasks. "
        "A bright diagonal alone is nothing learned: the gate begins there. H: entropy of the gate in nats, at most "
        f"{log(len(report['experts'])):.2f}. C{report['cold_means'][1:]}."
    )
    wrapped = "\n".join(textwrap.wrap(said, int(13.5 * width)))
    figure.text(0.3 / width, 1 - 0.52 / height, wrapped, size=8.5, color=FAINT, va="top", linespacing=1.4)


def _modalities(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    names = report["modalities"]
    absent = {"experts": {}, "entropy_nats": None}
    told = [layer["modalities"].get(name, absent) for name in names]
    table = np.array([[of["experts"].get(expert, np.nan) for expert in report["experts"]] for of in told])
    _heat(axes, 100 * table, names, report, cmap="Blues", limits=(0, 100), form="{:.0f}")
    for y, of in enumerate(told):
        word = "no\ntokens" if of is absent else "" if of["entropy_nats"] is None else f"H {of['entropy_nats']:.2f}"
        axes.annotate(
            word, (1.0, y), (4, 0), ("axes fraction", "data"), "offset points", size=8, color=FAINT, va="center"
        )
    axes.set_title(f"layer {layer['layer']}: where routes go, %", loc="left", size=10, color=INK)


def _load(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    loads = [layer["experts"][name]["over_fair"] for name in report["experts"]]
    colors = [_hex(role_color(role, report["roles"])) for role in report["roles"]]
    heights = [0.0 if load is None else load for load in loads]
    bars = axes.bar(range(len(loads)), heights, color=colors, width=0.72)
    axes.axhline(1.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    top = max(1.25, 1.18 * max(heights, default=1.0))
    axes.set_ylim(0, top)
    for bar, load, name in zip(bars, loads, report["experts"], strict=True):
        word = (
            ("idle" if name in layer["idle"] else "")
            if load is None
            else "cold"
            if name in layer["cold"]
            else f"{load:.2g}"
        )
        color = "#c4332b" if word == "cold" else FAINT
        if len(loads) <= LABELLED or word in {"cold", "idle"}:
            turned = 90 if len(loads) > LABELLED else 0
            place = (bar.get_x() + bar.get_width() / 2, bar.get_height() + 0.02 * top)
            axes.annotate(word, place, ha="center", va="bottom", size=8, color=color, rotation=turned)
    _expert_axis(axes, report)
    axes.tick_params(axis="y", labelsize=8, colors=FAINT)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.set_title("load over fair share", loc="left", size=10, color=INK)


def _phases(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    _differences(axes, layer["phases"], report, "by phase: points from the mean")


def _tasks(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    _differences(axes, layer["tasks"], report, "by task: points from the mean")


def _differences(axes: Axes, rows: Mapping[str, Mapping[str, float]], report: Mapping[str, Any], title: str) -> None:
    table = 100 * np.array([[row[name] for name in report["experts"]] for row in rows.values()])
    table = table - table.mean(axis=0)
    most = max(5.0, float(np.abs(table).max()))
    _heat(axes, table, list(rows), report, cmap="RdBu_r", limits=(-most, most), form="{:+.0f}")
    axes.set_title(title, loc="left", size=10, color=INK)


def _heat(
    axes: Axes,
    table: np.ndarray,
    rows: Sequence[str],
    report: Mapping[str, Any],
    *,
    cmap: str,
    limits: tuple[float, float],
    form: str,
) -> None:
    from matplotlib import colormaps

    colors = colormaps[cmap].with_extremes(bad="#e4e5e3")
    axes.imshow(np.ma.masked_invalid(table), cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set_yticks(range(len(rows)), rows, size=8, color=INK)
    if table.shape[1] <= LABELLED:
        dark = 0.62 * max(abs(limits[0]), abs(limits[1]))
        for y, x in np.argwhere(np.isfinite(table)):
            value = float(table[y, x])
            if abs(value) >= 0.75:
                axes.text(
                    x,
                    y,
                    form.format(value),
                    ha="center",
                    va="center",
                    size=7.5,
                    color="w" if abs(value) > dark else INK,
                )
    _expert_axis(axes, report)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for e in range(1, len(report["roles"])):
        if report["roles"][e] != report["roles"][e - 1]:
            axes.axvline(e - 0.5, color="#fafaf8", linewidth=3)


def _expert_axis(axes: Axes, report: Mapping[str, Any]) -> None:
    n = len(report["experts"])
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_xticks(
        range(n), report["experts"], size=8 if n <= 24 else 6, rotation=50, ha="right", rotation_mode="anchor"
    )
    for tick, role in zip(axes.get_xticklabels(), report["roles"], strict=True):
        tick.set_color(_hex(role_color(role, report["roles"])))
    axes.tick_params(axis="x", length=0, pad=2)


def _hex(color: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
