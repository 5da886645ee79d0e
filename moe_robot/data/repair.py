"""Brings back what can be of a damaged data set: its usable episodes, as a new data set; the old one is not touched.

Episodes that cannot be used are left out, totals and statistics are computed anew, and when ``meta/episodes`` was never
written (a recorder that was killed) it is made from the data files. A Parquet file without its footer is lost: so says
LeRobot's own recorder when it is killed, and nothing in such a file says where its columns are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_robot.data.columns import STATISTICS, vector_rows
from moe_robot.data.durable import disk_errors, only_writer, write_atomically, write_json
from moe_robot.data.examine import examine
from moe_robot.data.frames import data_files, video_clips
from moe_robot.data.layout import (
    DATA_PATH,
    EPISODES_PATH,
    INFO,
    STATS,
    TASKS,
    Info,
    chunk_and_file,
    read_episodes,
    read_info,
    read_table,
    read_tasks,
)
from moe_robot.data.statistics import combine, from_columns, to_columns, vector_statistics
from moe_robot.types import UserError


@dataclass(frozen=True)
class Repair:
    """What was done.

    Attributes:
        kept: episodes of the new data set.
        lost: numbers of the old episodes that are not in it.
        notes: what was wrong, one sentence each.
    """

    kept: int
    lost: tuple[int, ...]
    notes: tuple[str, ...]


def repair(directory: str | Path, out: str | Path) -> Repair:
    """Write the usable episodes of ``directory`` as a new data set into ``out``.

    Raises:
        UserError: nothing can be brought back, or ``out`` holds something already.
    """
    directory, out = Path(directory), Path(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds something already: name another --out")
    info = read_info(directory)
    notes: tuple[str, ...] = ()
    try:
        table, counted = read_episodes(directory, info, statistics=True), info
    except UserError as error:
        table, counted = _episodes_from_data(directory, info, error)
        notes = (f"{error}; made anew from the data files",)
    bad: set[int] = set()
    if counted is info:
        found = examine(directory, decode_videos=True)
        bad, notes = found.bad_episodes, tuple(p.message for p in found.problems if p.kind == "damage")
    keep = [episode for episode in range(table.num_rows) if episode not in bad]
    if not keep:
        raise UserError(f"{directory}: no episode can be brought back: {notes[0] if notes else 'it holds none'}")
    with disk_errors(out, kept="the old data set is as it was"), only_writer(out):
        _write(directory, out, counted, table, keep)
    return Repair(len(keep), tuple(sorted(bad)), notes)


def _episodes_from_data(directory: Path, info: Info, error: UserError) -> tuple[pa.Table, Info]:
    """The table of episodes of data files that have none."""
    if "video" in info.storage.values():
        raise UserError(f"{error}; where its videos belong was only written there, nothing can be brought back")
    sentences, rows, total, lost = read_tasks(directory), [], 0, None
    for path in sorted(directory.glob("data/chunk-*/file-*.parquet")):
        try:
            numbers = read_table(path, ["episode_index", "task_index"]).to_pydict()
        except UserError as damage:
            lost = damage
            break  # what comes later would have numbers that nobody can check
        chunk, file = int(path.parent.name[6:]), int(path.stem[5:])
        for episode in dict.fromkeys(numbers["episode_index"]):
            length = numbers["episode_index"].count(episode)
            if episode != len(rows):
                raise UserError(f"{path}: episode {episode} follows {len(rows) - 1}, nothing can be brought back")
            task = numbers["task_index"][numbers["episode_index"].index(episode)]
            place = {"data/chunk_index": chunk, "data/file_index": file}
            bounds = {"dataset_from_index": total, "dataset_to_index": total + length}
            rows.append({"episode_index": episode, "tasks": [sentences[task]], "length": length, **place, **bounds})
            total += length
    if not rows:
        raise UserError(f"{error}; nothing can be brought back{f': {lost}' if lost else ''}")
    raw = {**info.raw, "total_episodes": len(rows), "total_frames": total}
    return pa.Table.from_pylist(rows), replace(info, episodes=len(rows), frames=total, raw=raw)


def _write(directory: Path, out: Path, info: Info, table: pa.Table, keep: Sequence[int]) -> None:
    rows = table.take(pa.array(keep)).to_pylist()
    clips, kept = video_clips(directory, info, table), set(keep)
    for path in {clip.path for mine in clips.values() for clip in mine if clip.episode in kept}:
        _link(path, out / path.relative_to(directory))
    vectors: dict[str, list[np.ndarray]] = {}
    total, file = 0, 0
    for source in data_files(directory, info, table):
        mine = [(i, row) for i, row in enumerate(rows) if source.start <= row["dataset_from_index"] < source.stop]
        if not mine:
            continue
        data = pq.ParquetFile(source.path).read()
        parts, place = [], chunk_and_file(file)
        for number, row in mine:
            part = data.slice(row["dataset_from_index"] - source.start, row["length"])
            for name, values in (
                ("episode_index", np.full(row["length"], number)),
                ("index", np.arange(total, total + row["length"])),
            ):
                at = part.schema.get_field_index(name)
                part = part.set_column(at, part.schema.field(at), pa.array(values, pa.int64()))
            parts.append(part)
            row |= {f"data/{name}": value for name, value in place.items()}
            row |= {"dataset_from_index": total, "dataset_to_index": total + row["length"], "episode_index": number}
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            total += row["length"]
            for name in part.column_names:
                if not pa.types.is_struct(part.schema.field(name).type):
                    values = vector_rows(part[name])
                    vectors.setdefault(name, []).append(values)
                    row |= {f"stats/{name}/{k}": v for k, v in to_columns(vector_statistics(values), False).items()}
        path = out / DATA_PATH.format(**place)
        write_atomically(path, lambda temporary, parts=parts: _write_groups(temporary, parts))
        file += 1
    write_atomically(
        out / EPISODES_PATH.format(**chunk_and_file(0)),
        lambda temporary: pq.write_table(pa.Table.from_pylist(rows), temporary),
    )
    _link(directory / TASKS, out / TASKS)
    write_json(out / STATS, _statistics(info, rows, vectors))
    totals = {"total_episodes": len(rows), "total_frames": total, "splits": {"train": f"0:{len(rows)}"}}
    write_json(out / INFO, {**info.raw, **totals, "data_path": DATA_PATH})


def _write_groups(path: Path, parts: Sequence[pa.Table]) -> None:
    with pq.ParquetWriter(path, parts[0].schema) as writer:
        for part in parts:
            writer.write_table(part.combine_chunks(), row_group_size=part.num_rows)


def _statistics(info: Info, rows: Sequence[dict[str, Any]], vectors: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    found = {key: to_columns(vector_statistics(np.concatenate(v)), False) for key, v in vectors.items()}
    for camera in info.features.cameras:
        key = info.columns[camera]
        if all(row.get(f"stats/{key}/mean") is not None for row in rows):
            parts = [from_columns({name: row.get(f"stats/{key}/{name}") for name in STATISTICS}) for row in rows]
            found[key] = to_columns(combine(parts), image=True)
    return found


def _link(source: Path, target: Path) -> None:
    """A second name for a file that neither data set will ever write into, or a copy where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
