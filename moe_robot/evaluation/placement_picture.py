"""Draws the placement report: how uneven each layer's devices are, and who carries what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_robot.evaluation.journal import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#262c34", "#7a828c"
COLORS = {"contiguous": "#b9c0c8", "proposed": "#2f6fb0", "with copies": "#3f9b6d"}
PANEL, TALL = 3.6, 3.2
"""Width and height of a panel in inches."""


def draw_placement(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture of ``placement.json``: skew by layer, then the share of the routes on each device."""
    from matplotlib.figure import Figure

    names = list(report["whole"])
    figure = Figure(figsize=(PANEL * (1.3 + len(names)), TALL + 1.0), dpi=110, facecolor="#fafaf8")
    panels = figure.subplots(1, 1 + len(names), width_ratios=[1.3, *[1] * len(names)])
    _skew(panels[0], report)
    most = max(
        load for layer in report["layers"] for told in layer["placements"].values() for load in told["load"]
    )  # one scale for all, so that they can be compared
    for axes, name in zip(panels[1:], names, strict=True):
        _loads(axes, report, name, most)
    of = report.get("preset") or "policy"
    figure.suptitle(
        f"{report['devices']} devices, {report['batch']} frames in a step: experts of {of}",
        color=INK,
        weight="bold",
        x=0.02,
        ha="left",
    )
    figure.tight_layout()
    with writing(path):
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png")
        part.replace(path)


def _skew(axes: Axes, report: Mapping[str, Any]) -> None:
    layers, names = report["layers"], list(report["whole"])
    wide = 0.8 / len(names)
    for i, name in enumerate(names):
        told = [layer["placements"][name] for layer in layers]
        x = np.arange(len(layers)) + (i - (len(names) - 1) / 2) * wide
        mean = np.array([t["skew_mean"] for t in told])
        p95 = np.array([t["skew_p95"] for t in told])
        axes.bar(x, mean, wide * 0.92, color=COLORS[name], label=f"{name}: time x {report['whole'][name]['time']:.2f}")
        axes.vlines(x, mean, np.maximum(mean, p95), color=INK, linewidth=1)
    for i, layer in enumerate(layers):
        axes.hlines(layer["lower_bound"], i - 0.45, i + 0.45, color="#c0392b", linewidth=1.5, linestyle=":")
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.set_xticks(range(len(layers)), [str(layer["layer"]) for layer in layers])
    axes.set_xlabel("layer (dotted: no placement without copies can be below; line: 95 % of steps)", size=8, color=INK)
    axes.set_title("busiest device over the mean, per step", size=10, color=INK)
    axes.legend(fontsize=8, frameon=False)


def _loads(axes: Axes, report: Mapping[str, Any], name: str, most: float) -> None:
    load_LN = np.array([layer["placements"][name]["load"] for layer in report["layers"]])
    axes.imshow(load_LN, vmin=0, vmax=most, cmap="Blues", aspect="auto")
    if load_LN.shape[1] <= 12:
        for i, row in enumerate(load_LN):
            for d, load in enumerate(row):
                axes.text(d, i, f"{load:.0%}", ha="center", va="center", size=8, color="w" if load > most / 2 else INK)
    axes.set_xticks(range(load_LN.shape[1]), [f"{d}" for d in range(load_LN.shape[1])], size=8)
    axes.set_yticks(range(len(load_LN)), [str(layer["layer"]) for layer in report["layers"]], size=8)
    axes.set_xlabel("device", size=8, color=INK)
    axes.set_title(f"{name}: share of a layer's routes", size=10, color=INK)
