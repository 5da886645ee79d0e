"""The HTML page of an examined data set: one file with its pictures inside, readable without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from moe_robot.data.examine import Examination
from moe_robot.data.loader import open_dataset
from moe_robot.types import IMAGE_PREFIX, UserError

ACROSS = 8
"""Frames of an episode on its contact sheet, evenly from first to last."""
SHEETS = 24
"""Episodes with a contact sheet, evenly over the tasks."""
HEIGHT = 96
"""Pixels of a frame on a sheet."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1d2433; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } th { font-weight: 600; color: #5b6478; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-size: .85rem; }
.bad { color: #a4262c; } .note { color: #5b6478; } img { image-rendering: auto; max-width: 100%; display: block; }
.sheet { margin: 0 0 1rem; } svg { background: #f5f6f9; display: block; }
@media (prefers-color-scheme: dark) { body { background: #14171f; color: #e6e9f0; } svg { background: #20242f; } }
"""


def page(found: Examination) -> str:
    """The whole page."""
    name = escape(Path(found.summary["data"]).resolve().name)
    parts = [
        f"<h1>{name}</h1>",
        _table([], [[key.replace("_", " "), _shown(value)] for key, value in found.summary.items()]),
        "<h2>Problems</h2>",
        _problems(found),
        "<h2>Features</h2>",
        _table(
            ["name", "type", "shape", ""],
            [[f["name"], f["dtype"], f["shape"], "" if f["used"] else "not used here"] for f in found.features],
        ),
        "<h2>Tasks</h2>",
        _table(
            ["task", "episodes", "frames", "for example"],
            [[t["task"], t["episodes"], t["frames"], t["example"]] for t in found.tasks],
        ),
        "<h2>Lengths</h2>",
        f"<figure>{_histogram(np.histogram(found.lengths, bins=24)[0], 480, 90)}"
        f"<figcaption>{min(found.lengths)} to {max(found.lengths)} frames, median {np.median(found.lengths):.0f}"
        "</figcaption></figure>",
        "<h2>State and action</h2>",
        f'<div class="cards">{"".join(_card(entry) for entry in found.entries)}</div>',
        "<h2>Episodes</h2>",
        *_sheets(found),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"<body>{body}</body></html>\n"
    )


def _problems(found: Examination) -> str:
    if not found.problems:
        return '<p class="note">None.</p>'
    rows = [
        [p.kind, p.message, ", ".join(map(str, p.episodes[:12])) + (" ..." if len(p.episodes) > 12 else "")]
        for p in found.problems
    ]
    return _table(["kind", "what", "episodes"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(tag: str, value: Any) -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return f"<{tag}{' class=n' if number else ''}>{escape(str(value))}</{tag}>"

    numeric = [isinstance(value, int | float) for value in rows[0]] if rows else []
    top = "".join(f"<th{' class=n' if n else ''}>{escape(h)}</th>" for h, n in zip(head, numeric, strict=False))
    lines = ["<tr>" + "".join(cell("td", value) for value in row) + "</tr>" for row in rows]
    return f"<table>{'<tr>' + top + '</tr>' if head else ''}{''.join(lines)}</table>"


def _shown(value: Any) -> str:
    return f"{value:,.10g}" if isinstance(value, int | float) else "" if value is None else str(value)


def _card(entry: Mapping[str, Any]) -> str:
    note = "never moves" if entry["dead"] else f"{entry['min']:.3g} to {entry['max']:.3g}, mean {entry['mean']:.3g}"
    kind = " class=bad" if entry["dead"] else ""
    return (
        f"<figure>{_histogram(entry['histogram'], 200, 60)}<figcaption><b>{escape(entry['name'])}</b> "
        f'<span class="note">{escape(entry["feature"])}</span><br><span{kind}>{note}</span></figcaption></figure>'
    )


def _histogram(counts: Sequence[int] | np.ndarray, width: int, height: int) -> str:
    most, step = max(1, int(max(counts))), width / len(counts)
    bars = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{height * (1 - n / most):.1f}" width="{step - 1:.1f}"'
        f' height="{height * n / most:.1f}" fill="#4c6ef5"><title>{n}</title></rect>'
        for i, n in enumerate(map(int, counts))
    )
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{bars}</svg>'


def _sheets(found: Examination) -> Iterator[str]:
    """Contact sheets of episodes that are not damaged, or what keeps them from being drawn."""
    usable = [i for i in range(len(found.lengths)) if i not in found.bad_episodes]
    try:
        ranges = ",".join(map(str, usable))
        dataset = (
            open_dataset(found.summary["data"], 1, split="all", episodes=ranges, frames="stream") if usable else None
        )
    except UserError as error:
        yield f'<p class="bad">No pictures: {escape(str(error))}</p>'
        return
    if dataset is None:
        yield '<p class="bad">No pictures: no episode is usable.</p>'
        return
    if len(usable) > SHEETS:
        yield f'<p class="note">{SHEETS} of {len(usable)} episodes.</p>'
    episodes = dataset.episodes
    ends = np.cumsum(episodes.stop - episodes.start)
    by_task = sorted(range(len(episodes)), key=lambda i: (episodes.task[:i].count(episodes.task[i]), i))
    for place in sorted(by_task[:SHEETS]):
        first, last = int(ends[place] - (episodes.stop - episodes.start)[place]), int(ends[place]) - 1
        frames = np.unique(np.linspace(first, last, ACROSS).round().astype(int))
        try:
            batch = dataset.batch(frames)
        except UserError as error:
            yield f'<p class="bad">{escape(str(error))}</p>'
            continue
        rows = [_strip(batch[IMAGE_PREFIX + camera], camera) for camera in dataset.features.cameras]
        title = f"episode {episodes.index[place]}: {escape(episodes.sentence[place])} ({last - first + 1} frames)"
        yield f'<figure class="sheet"><figcaption>{title}</figcaption>{"".join(rows)}</figure>'


def _strip(frames_NHWC: np.ndarray, camera: str) -> str:
    height, width = frames_NHWC.shape[1:3]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    row = np.concatenate([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames_NHWC], axis=1)
    data = base64.b64encode(cv2.imencode(".jpg", cv2.cvtColor(row, cv2.COLOR_RGB2BGR))[1].tobytes()).decode()
    return f'<img alt="{escape(camera)}" title="{escape(camera)}" src="data:image/jpeg;base64,{data}">'
