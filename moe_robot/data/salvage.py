"""Finds again what a killed recorder never wrote down: footers of data files, which episodes there are, and where."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError

from moe_robot.data.durable import write_atomically
from moe_robot.data.footer import with_footer
from moe_robot.data.layout import Info, read_table, read_tasks
from moe_robot.data.schema import IMAGE_TYPE, Column
from moe_robot.data.video import open_video
from moe_robot.types import UserError

DATA = "data/chunk-*/file-*.parquet"


def with_footers(directory: Path, info: Info, folder: Path) -> list[str]:
    """Fill ``folder`` with the data set under second names, its data files with the footers that they lack.

    Returns one sentence per file that lacked one.
    """
    notes = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and ".cache" not in path.parts):
        target = folder / path.relative_to(directory)
        if path.match(DATA) and not _is_whole(path):
            content, rows = with_footer(path.read_bytes(), _schema(directory, info))
            if rows:
                write_atomically(target, lambda temporary, content=content: _write(temporary, content))
                notes.append(f"{path} had no footer (its writer was killed): {rows} frames of it were found again")
                continue
        link(path, target)
    return notes


def episodes_from_data(directory: Path, info: Info, error: UserError) -> tuple[pa.Table, Info]:
    """The table of episodes of a data set that has none, from its data files and videos; and its true totals.

    Raises:
        UserError: nothing can be brought back; it says why, and ``error``.
    """
    sentences, rows, total, lost = read_tasks(directory), [], 0, None
    for path in sorted(directory.glob(DATA)):
        try:
            numbers = read_table(path, ["episode_index", "task_index"]).to_pydict()
        except UserError as damage:
            lost = damage
            break  # what comes later would have numbers that nobody can check
        chunk, file = _numbers(path)
        for episode in dict.fromkeys(numbers["episode_index"]):
            length = numbers["episode_index"].count(episode)
            if episode != len(rows):
                raise UserError(f"{path}: episode {episode} follows {len(rows) - 1}, nothing can be brought back")
            task = numbers["task_index"][numbers["episode_index"].index(episode)]
            place = {"data/chunk_index": chunk, "data/file_index": file}
            bounds = {"dataset_from_index": total, "dataset_to_index": total + length}
            rows.append({"episode_index": episode, "tasks": [sentences[task]], "length": length, **place, **bounds})
            total += length
    for camera, storage in info.storage.items():
        if storage == "video":
            rows = _with_video(directory, info, camera, rows)
    if not rows:
        raise UserError(f"{error}; nothing can be brought back{f': {lost}' if lost else ''}")
    total = rows[-1]["dataset_to_index"]
    raw = {**info.raw, "total_episodes": len(rows), "total_frames": total}
    return pa.Table.from_pylist(rows), replace(info, episodes=len(rows), frames=total, raw=raw)


def link(source: Path, target: Path) -> None:
    """A second name for a file that neither data set will ever write into, or a copy where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _with_video(directory: Path, info: Info, camera: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the first episodes that the videos have frames of, with the places: they lie there one by one."""
    key, fps, found, left = info.columns[camera], info.features.fps, [], 0
    files = iter(sorted(directory.glob(f"videos/{key}/chunk-*/file-*.mp4")))
    chunk = file = at = 0
    for row in rows:
        while left < row["length"]:
            path = next(files, None)
            if path is None:
                return found
            (chunk, file), at, left = _numbers(path), 0, _frames(path)
        times = {"from_timestamp": at / fps, "to_timestamp": (at + row["length"]) / fps}
        place = {"chunk_index": chunk, "file_index": file, **times}
        found.append({**row, **{f"videos/{key}/{name}": value for name, value in place.items()}})
        at, left = at + row["length"], left - row["length"]
    return found


def _frames(path: Path) -> int:
    """Of a video; none where it cannot be read."""
    try:
        with open_video(path) as container:
            return sum(packet.pts is not None for packet in container.demux(container.streams.video[0]))
    except (UserError, FFmpegError):
        return 0


def _schema(directory: Path, info: Info) -> pa.Schema:
    """The columns of a data file as LeRobot's recorder writes them, in its order."""
    fields = []
    for key, feature in info.raw["features"].items():
        if feature["dtype"] == "image":
            fields.append(pa.field(key, IMAGE_TYPE))
        elif feature["dtype"] in ("float32", "float64", "int64", "bool") and len(feature["shape"]) == 1:
            fields.append(pa.field(key, Column(feature["dtype"], feature["shape"][0]).type))
        elif feature["dtype"] != "video":
            raise UserError(
                f"{directory} has a data file without a footer and the feature {key!r} ({feature['dtype']}"
                f" {feature['shape']}): nothing can be brought back"
            )
    return pa.schema(fields)


def _is_whole(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _numbers(path: Path) -> tuple[int, int]:
    """``chunk-002/file-013.mp4`` -> (2, 13)."""
    return int(path.parent.name[6:]), int(path.stem[5:])
