"""Brings back what can be of a damaged data set: its usable episodes, as a new data set; the old one is not touched.

Episodes that cannot be used are left out, totals and statistics are computed anew. When ``meta/episodes`` was never
written (LeRobot's recorder was killed) it is made from the data files, which get the footers that they lack, and from
the lengths of the videos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
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
)
from moe_robot.data.salvage import episodes_from_data, link, with_footers
from moe_robot.data.statistics import combine, from_columns, to_columns, vector_statistics
from moe_robot.types import UserError

KEPT = "the old data set is as it was"


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
    try:
        read_episodes(directory, info)
    except UserError as error:
        place = out.absolute().parent
        place.mkdir(parents=True, exist_ok=True)
        with disk_errors(place, kept=KEPT), tempfile.TemporaryDirectory(dir=place, prefix=f".{out.name}-") as folder:
            notes = with_footers(directory, info, Path(folder))
            table, counted = episodes_from_data(Path(folder), info, error)
            with only_writer(out):
                _write(Path(folder), out, counted, table, range(table.num_rows))
            lost = tuple(range(table.num_rows, info.episodes))
            return Repair(table.num_rows, lost, (*notes, f"{error}; made anew from the data files"))
    table = read_episodes(directory, info, statistics=True)
    found = examine(directory, decode_videos=True)
    bad, notes = found.bad_episodes, [p.message for p in found.problems if p.kind == "damage"]
    keep = [episode for episode in range(table.num_rows) if episode not in bad]
    if not keep:
        raise UserError(f"{directory}: no episode can be brought back: {notes[0] if notes else 'it holds none'}")
    with disk_errors(out, kept=KEPT), only_writer(out):
        _write(directory, out, info, table, keep)
    return Repair(len(keep), tuple(sorted(bad)), tuple(notes))


def _write(directory: Path, out: Path, info: Info, table: pa.Table, keep: Sequence[int]) -> None:
    rows = table.take(pa.array(keep)).to_pylist()
    clips, kept = video_clips(directory, info, table), set(keep)
    for path in {clip.path for mine in clips.values() for clip in mine if clip.episode in kept}:
        link(path, out / path.relative_to(directory))
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
    link(directory / TASKS, out / TASKS)
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
