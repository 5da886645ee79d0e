"""Draws on camera pictures which expert each patch chose first, and over all frames which one each place chooses."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_robot.evaluation.journal import writing
from moe_robot.evaluation.routing import Frame
from moe_robot.types import TokenRoutes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, PAPER = "#262c34", "#7a828c", "#fafaf8"
EXAMPLES = 4
SIDE = 2.1
"""Inches of one picture."""


def draw_regions(frames: Sequence[Frame], path: Path) -> bool:
    """Write the picture: rows are layers and cameras, columns a few frames of different tasks and one of all frames.

    Returns:
        Whether there was anything to draw: False (and no file) when no layer routes tokens that have a place.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    labels = frames[0].tokens[0].labels
    cameras = list(dict.fromkeys(label.camera for label in labels if label.camera and label.cell))
    rows = [
        (layer, camera)
        for layer in range(len(frames[0].tokens))
        for camera in cameras
        if (first_choices(frames[0].tokens[layer], camera)[0] >= 0).any()
    ]
    if not rows:
        return False
    examples = _examples(frames)
    experts = frames[0].routing.experts
    everything = {row: np.stack([first_choices(frame.tokens[row[0]], row[1])[0] for frame in frames]) for row in rows}
    colors = _colors(
        sorted({int(e) for grid in everything.values() for e in np.unique(grid) if e >= 0} | _seen(frames))
    )
    left, head, foot, gap_x, gap_y = 1.25, 1.5, 0.75, 0.22, 0.52
    width = left + (len(examples) + 1) * (SIDE + gap_x) + 0.2
    height = head + foot + len(rows) * (SIDE + gap_y)
    figure = Figure(figsize=(width, height), dpi=110, facecolor=PAPER)
    figure.text(
        0.3 / width, 1 - 0.38 / height, "Which expert each place chose first", size=15, color=INK, weight="bold"
    )
    figure.text(
        0.3 / width,
        1 - 0.64 / height,
        f"tint: patches; squares below: glimpses, which have no fixed place; right: most frequent over {len(frames)} "
        "frames, in %",
        size=9,
        color=FAINT,
    )
    for r, (layer, camera) in enumerate(rows):
        y = height - head - r * (SIDE + gap_y) - SIDE
        figure.text(
            0.3 / width, (y + SIDE / 2) / height, f"layer {layer + 1}\n{camera}", size=10, color=INK, va="center"
        )
        for c in range(len(examples) + 1):
            x = left + c * (SIDE + gap_x)
            axes = figure.add_axes((x / width, y / height, SIDE / width, SIDE / height))
            if c < len(examples):
                _example(axes, examples[c], layer, camera, colors)
            else:
                _all_frames(axes, everything[layer, camera], colors)
            if r == 0:
                title = "all frames" if c == len(examples) else "\n".join(textwrap.wrap(examples[c].sentence, 30)[:3])
                axes.set_title(title, size=8.5, color=INK, pad=6)
    figure.legend(
        handles=[Patch(color=color, label=experts[e]) for e, color in colors.items()],
        loc="lower left",
        bbox_to_anchor=(0.25 / width, 0.12 / height),
        ncols=min(8, len(colors)),
        frameon=False,
        fontsize=9,
    )
    with writing(path):
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png")
        part.replace(path)
    return True


def first_choices(routes: TokenRoutes, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """The first choice of each patch of a camera as a grid (rows, columns), and those of its tokens without a place."""
    grid, loose = np.full((0, 0), -1), []
    for label, expert in zip(routes.labels, routes.ids_BNK[0, :, 0], strict=True):
        if label.camera != camera:
            continue
        if label.cell is None:
            loose.append(expert)
            continue
        row, column, n_rows, n_columns = label.cell
        if grid.size == 0:
            grid = np.full((n_rows, n_columns), -1)
        grid[row, column] = expert
    return grid, np.array(loose, dtype=np.int64)


def _examples(frames: Sequence[Frame]) -> list[Frame]:
    """Frames of different tasks and phases, as far as there are."""
    tasks = list(dict.fromkeys(frame.task for frame in frames))
    chosen: list[Frame] = []
    for i, t in enumerate(np.linspace(0, len(tasks) - 1, EXAMPLES).round().astype(int)):
        of_task = [frame for frame in frames if frame.task == tasks[t] and frame not in chosen]
        chosen += ([frame for frame in of_task if frame.phase == i % 4] or of_task)[:1]
    return chosen


def _example(axes: Axes, frame: Frame, layer: int, camera: str, colors: Mapping[int, str]) -> None:
    from matplotlib.patches import Rectangle

    image = frame.images[camera]
    h, w = image.shape[:2]
    grey = np.repeat((image @ np.array([0.3, 0.59, 0.11]))[..., None], 3, axis=-1).astype(np.uint8)
    axes.imshow(grey, extent=(0, w, h, 0))  # colours are for the experts
    grid, loose = first_choices(frame.tokens[layer], camera)
    n_rows, n_columns = grid.shape
    for (row, column), expert in np.ndenumerate(grid):
        place = (column * w / n_columns, row * h / n_rows)
        if expert >= 0:
            axes.add_patch(
                Rectangle(place, w / n_columns, h / n_rows, facecolor=colors[int(expert)], alpha=0.38, edgecolor=PAPER)
            )
    for i, expert in enumerate(loose[loose >= 0]):
        box = Rectangle((i * 0.09 * w, 1.03 * h), 0.075 * w, 0.075 * h, facecolor=colors[int(expert)], clip_on=False)
        axes.add_patch(box)
    axes.set(xlim=(0, w), ylim=(h, 0))
    axes.axis("off")


def _all_frames(axes: Axes, grids_FRC: np.ndarray, colors: Mapping[int, str]) -> None:
    from matplotlib.patches import Rectangle

    _, n_rows, n_columns = grids_FRC.shape
    for row, column in np.ndindex(n_rows, n_columns):
        chosen = grids_FRC[:, row, column]
        chosen = chosen[chosen >= 0]
        if not len(chosen):
            continue
        expert, times = max(zip(*np.unique(chosen, return_counts=True), strict=True), key=lambda pair: pair[1])
        share = times / len(chosen)
        axes.add_patch(
            Rectangle((column, row), 1, 1, facecolor=colors[int(expert)], alpha=0.15 + 0.6 * share, edgecolor=PAPER)
        )
        if n_rows <= 8:
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", ha="center", va="center", size=8.5, color=INK)
    axes.set(xlim=(0, n_columns), ylim=(n_rows, 0))
    axes.axis("off")


def _seen(frames: Sequence[Frame]) -> set[int]:
    """Experts that tokens without a place chose first."""
    found: set[int] = set()
    for routes in (routes for frame in frames for routes in frame.tokens):
        places = [n for n, label in enumerate(routes.labels) if label.camera and not label.cell]
        found |= set(np.unique(routes.ids_BNK[0, places, 0]).tolist())
    return found - {-1}


def _colors(experts: Sequence[int]) -> dict[int, str]:
    """Colours far apart: neighbours in a picture are mostly of one role, which a colour per role would merge."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ten = [to_hex(color) for color in colormaps["tab10"].colors]  # type: ignore[attr-defined]
    if max(experts, default=0) < len(ten):
        return {e: ten[e] for e in experts}  # the same expert has the same colour in another picture
    if len(experts) <= len(ten):
        return dict(zip(experts, ten, strict=False))
    return {e: to_hex(colormaps["gist_rainbow"](i / len(experts))) for i, e in enumerate(experts)}
