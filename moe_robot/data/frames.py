"""Where every frame of a data set lies, and its decoding, from images in Parquet row groups and from videos alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_robot.data.layout import INFO, Info
from moe_robot.data.video import Clip, read_clips
from moe_robot.registry import unknown
from moe_robot.types import UserError


@dataclass(frozen=True)
class DataFile:
    """A data file and the frames it holds.

    Attributes:
        path: the Parquet file.
        start: index in the data set of its first frame.
        stop: index after its last frame that belongs to a complete episode; rows beyond are ignored.
    """

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class ImageRows:
    """Consecutive frames of a camera that lie encoded in one row group.

    Attributes:
        path: the Parquet file.
        column: the camera's key in it.
        group: the row group.
        start: index in the data set of its first frame.
        length: its frames.
    """

    path: Path
    column: str
    group: int
    start: int
    length: int


Source = tuple[ImageRows, ...] | tuple[Clip, ...]
"""What is decoded in one go: a row group, or the clips of one video file."""


def data_files(directory: Path, info: Info, table: pa.Table) -> list[DataFile]:
    """The data files of the complete episodes, in order. ``table`` is that of the episodes."""
    names = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    files: dict[Path, DataFile] = {}
    for chunk, number, start, stop in zip(*(_column(table, name, directory) for name in names), strict=True):
        path = directory / info.data_path.format(chunk_index=chunk, file_index=number)
        known = files.get(path, DataFile(path, start, stop))
        files[path] = DataFile(path, min(known.start, start), max(known.stop, stop))
    return sorted(files.values(), key=lambda file: file.start)


def video_clips(directory: Path, info: Info, table: pa.Table) -> dict[str, list[Clip]]:
    """Camera stored as video -> where each of its episodes lies, by video file.

    Raises:
        UserError: ``meta/episodes`` does not say where the videos are.
    """
    clips: dict[str, list[Clip]] = {}
    starts, lengths = (_column(table, name, directory) for name in ("dataset_from_index", "length"))
    for camera, storage in info.storage.items():
        if storage != "video":
            continue
        key = info.columns[camera]
        if not info.video_path:
            raise UserError(f"{directory}: camera {camera!r} is a video, but {INFO} has no video_path: copy it again")
        rate = (info.raw["features"][key].get("info") or {}).get("video.fps", info.features.fps)
        if int(rate) != info.features.fps:
            raise UserError(
                f"{directory}/{INFO}: camera {camera!r} runs at {rate} frames per second, the data at"
                f" {info.features.fps}: record them at one rate, or leave the camera out"
            )
        names = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        rows = zip(*(_column(table, name, directory) for name in names), starts, lengths, strict=True)
        clips[camera] = [
            Clip(
                directory / info.video_path.format(video_key=key, chunk_index=chunk, file_index=number),
                start,
                length,
                float(time),
                episode,
            )
            for episode, (chunk, number, time, start, length) in enumerate(rows)
        ]
    return clips


def sources(info: Info, files: Sequence[DataFile], clips: Mapping[str, Sequence[Clip]]) -> dict[str, list[Source]]:
    """Camera -> everything that its frames are decoded from.

    Raises:
        UserError: a data file is damaged.
    """
    found: dict[str, list[Source]] = {}
    for camera, storage in info.storage.items():
        if storage == "video":
            ordered = sorted(clips[camera], key=lambda clip: (str(clip.path), clip.time))
            found[camera] = [tuple(group) for _, group in groupby(ordered, key=lambda clip: clip.path)]
        elif storage == "image":
            found[camera] = [(rows,) for file in files for rows in _row_groups(file, info.columns[camera])]
        else:
            raise unknown("storage of a camera", storage, ("image", "video"))
    return found


def decode_source(
    source: Source, shape: tuple[int, ...], fps: int, threads: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """(index in the data set, uint8 RGB frame of ``shape``) of every frame of ``source``.

    Raises:
        UserError: a frame is missing, does not decode or has another shape.
    """
    for part in source:
        if isinstance(part, ImageRows):
            encoded = read_images(part)
            frames = ((part.start + row, decode_image(part, row, encoded[row])) for row in range(part.length))
        else:
            clips = tuple(clip for clip in source if isinstance(clip, Clip))
            frames = read_clips(clips, fps, threads)
        for index, frame in frames:
            if frame.shape != shape:
                raise UserError(
                    f"{part.path}, frame {index}: the image has shape {frame.shape}, {INFO} says {tuple(shape)}"
                )
            yield index, frame
        if isinstance(part, Clip):
            return


def read_images(rows: ImageRows) -> pa.Array:
    """The encoded images of a row group."""
    try:
        with pq.ParquetFile(rows.path, memory_map=True) as file:
            table = file.read_row_group(rows.group, columns=[rows.column], use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{rows.path} is damaged ({error}): copy or collect the data set again") from error
    return table[rows.column].combine_chunks().field("bytes")


def decode_image(rows: ImageRows, row: int, encoded: Any) -> np.ndarray:
    """One image (PNG, JPEG and the like) as uint8 RGB (H, W, 3)."""
    data = encoded.as_buffer()
    image = None if data is None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(
            f"{rows.path}, frame {rows.start + row}, camera {rows.column.rpartition('.')[2]!r}: the image does not"
            " decode, copy or collect the data set again"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _row_groups(file: DataFile, column: str) -> Iterator[ImageRows]:
    try:
        meta = pq.read_metadata(file.path)
    except FileNotFoundError:
        raise UserError(f"{file.path} is missing: the data set is incomplete, copy or collect it again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file.path} is damaged ({error}): copy or collect the data set again") from error
    first = file.start
    for group in range(meta.num_row_groups):
        rows = min(meta.row_group(group).num_rows, file.stop - first)
        if rows > 0:
            yield ImageRows(file.path, column, group, first, rows)
        first += rows


def _column(table: pa.Table, name: str, directory: Path) -> list[Any]:
    if name not in table.column_names:
        raise UserError(f"{directory}/meta/episodes has no column {name!r}: copy the data set again")
    return table[name].to_pylist()


Progress = Callable[[int, int], None]
"""Called with (frames decoded, frames in all), counting every camera's."""
