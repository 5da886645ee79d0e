"""Draws the routing report as heat maps: per layer who goes where, how busy experts are, and what sways them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
LABELLED = 12
"""With more experts than this, cells are too narrow for numbers."""


def draw_routing(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture of ``routing.json``: one row of four panels per layer."""
    from matplotlib.figure import Figure

    n_experts, layers = len(report["experts"]), report["layers"]
    names = (report["modalities"], (), report["phases"], report["tasks"])
    panels = (_modalities, _load, _phases, _tasks)
    wide = max(2.7, CELL * n_experts)
    lefts = [0.09 * max(map(len, of), default=0) + 0.5 for of in names]
    talls = [max(1.7, TALL * len(of)) for of in names]
    head, foot, below = 1.2, 0.5, 1.25
    width = sum(lefts) + len(panels) * wide + 0.4
    height = head + foot + len(layers) * (max(talls) + below)
    figure = Figure(figsize=(width, height), dpi=110, facecolor="#fafaf8")
    _heading(figure, report, width, height)
    for i, layer in enumerate(layers):
        top = height - head - i * (max(talls) + below)
        x = 0.0
        for draw_panel, left, tall in zip(panels, lefts, talls, strict=True):
            x += left
            axes = figure.add_axes((x / width, (top - tall) / height, wide / width, tall / height))
            draw_panel(axes, layer, report)
            x += wide
    with writing(path):
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png")
        part.replace(path)


def _heading(figure: Figure, report: Mapping[str, Any], width: float, height: float) -> None:
    name = report.get("preset") or "policy"
    figure.text(0.3 / width, 1 - 0.38 / height, f"Routing of {name}", size=15, color=INK, weight="bold")
    figure.text(
        0.3 / width,
        1 - 0.66 / height,
        f"{report['frames']} frames of {report['episodes']} episodes ({report['split']}), {len(report['tasks'])} tasks. "
        "A bright diagonal alone is nothing learned: the gate begins there.",
        size=9.5,
        color=FAINT,
    )
    figure.text(0.3 / width, 0.3 / height, report["cold_means"], size=8.5, color=FAINT)


def _modalities(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    names = [m for m in report["modalities"]]
    table = np.array(
        [
            [layer["modalities"].get(m, {"experts": {}})["experts"].get(e, np.nan) for e in report["experts"]]
            for m in names
        ]
    )
    labels = []
    for m in names:
        told = layer["modalities"].get(m)
        entropy = told and told["entropy_nats"]
        labels.append(f"{m}\n" + ("no tokens" if told is None else "" if entropy is None else f"H {entropy:.2f} nats"))
    _heat(axes, 100 * table, labels, report, cmap="Blues", limits=(0, 100), form="{:.0f}")
    axes.set_title(f"layer {layer['layer']}: where each modality's routes go, %", loc="left", size=10, color=INK)


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
    axes.set_title("load over fair share (dashed: fair)", loc="left", size=10, color=INK)


def _phases(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    _differences(axes, layer["phases"], report, "phase of the episode: points from the mean")


def _tasks(axes: Axes, layer: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    _differences(axes, layer["tasks"], report, "task: points from the mean")


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

    colors = colormaps[cmap].copy()
    colors.set_bad("#e4e5e3")
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
