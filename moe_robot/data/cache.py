"""Decodes every frame once into memory-mapped uint8 arrays beside the data set, shared by all its readers.

A cache belongs to the content of the data set (:func:`content_hash`), not to its name or time stamps: whatever changes
in the data set, the old cache is not found any more and is removed by the next build.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_robot.data.durable import disk_errors, only_writer, sync_directory, write_json
from moe_robot.data.layout import INFO, STATS, TASKS, Info
from moe_robot.types import UserError

CACHE = ".cache"
_HASHES = "hashes.json"
_MARK = "cache.json"


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


def content_hash(directory: Path, files: Iterable[DataFile], cache: Path | None = None) -> str:
    """A hash of every byte of the data set: its meta files and data files.

    Hashes of files are remembered in ``cache`` with size, inode, and times of modification *and of inode change*: the
    latter cannot be set back, so a file that was replaced under the same time stamp is still noticed.
    """
    memory = cache / _HASHES if cache else None
    try:
        known = json.loads(memory.read_text()) if memory else {}
    except (OSError, ValueError):
        known = {}
    paths = [directory / INFO, directory / TASKS, directory / STATS]
    paths += sorted((directory / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    paths += [file.path for file in files]
    total, fresh = hashlib.blake2b(digest_size=16), {}
    for path in paths:
        if not path.is_file():
            continue
        name, stat = path.relative_to(directory).as_posix(), path.stat()
        state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        if name in known and known[name][0] == state:
            digest = known[name][1]
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()
        fresh[name] = [state, digest]
        total.update(f"{name}\0{digest}\0".encode())
    if memory is not None and fresh != known and memory.parent.is_dir() and os.access(memory.parent, os.W_OK):
        write_json(memory, fresh)
    return total.hexdigest()


def open_frames(
    info: Info,
    files: list[DataFile],
    content: str,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Read-only memory maps camera -> uint8 (frames, H, W, 3) RGB, decoded first if this content has none yet.

    Args:
        info: of the data set.
        files: its data files, in order.
        content: its :func:`content_hash`.
        cache: folder of the caches of this data set.
        progress: called with (frames decoded, frames in all) while decoding.

    Raises:
        UserError: a camera is stored as video, a frame does not decode or has the wrong size, the disk is full.
    """
    shapes = {camera: (files[-1].stop, *size, 3) for camera, size in info.features.cameras.items()}
    for camera, storage in info.storage.items():
        if storage != "image":
            raise UserError(f"camera {camera!r} is stored as {storage}: only encoded images can be read so far")
    folder = cache / content
    if not (folder / _MARK).is_file():
        with disk_errors(cache, kept="nothing is lost"), only_writer(cache, wait=True):
            if not (folder / _MARK).is_file():  # another process may have built it while we waited
                _build(info, files, shapes, folder, progress)
    return {
        camera: np.memmap(_frames_path(folder, camera), dtype=np.uint8, mode="r", shape=shape)
        for camera, shape in shapes.items()
    }


def cache_bytes(info: Info, frames: int) -> int:
    """Disk space of the decoded frames."""
    return frames * sum(height * width * 3 for height, width in info.features.cameras.values())


def _frames_path(folder: Path, camera: str) -> Path:
    return folder / f"{camera.replace('/', '_')}.uint8"


def _build(
    info: Info,
    files: list[DataFile],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    total = files[-1].stop
    for old in [path for path in folder.parent.iterdir() if path.is_dir()]:  # half-built, or of a content that is gone
        shutil.rmtree(old)
    need, free = cache_bytes(info, total), shutil.disk_usage(folder.parent).free
    if need > free:
        raise UserError(
            f"the frame cache needs {need / 1e9:.2f} GB in {folder.parent}, {free / 1e9:.2f} GB are free:"
            " free some space or choose another cache directory"
        )
    building = folder.with_name(folder.name + ".tmp")
    building.mkdir()
    maps = {
        camera: np.memmap(_frames_path(building, camera), dtype=np.uint8, mode="w+", shape=shape)
        for camera, shape in shapes.items()
    }
    done = 0
    # cv2 decodes without holding the interpreter lock: threads share the maps and use all cores.
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        try:
            for count in pool.map(lambda part: _decode(info, maps, *part), list(_parts(files))):
                done += count
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(building, ignore_errors=True)
            raise
    for frames in maps.values():
        frames.flush()
    write_json(building / _MARK, {"content": folder.name, "shapes": {camera: list(s) for camera, s in shapes.items()}})
    building.rename(folder)
    sync_directory(folder.parent)


def _parts(files: list[DataFile]) -> Iterable[tuple[DataFile, int, int, int]]:
    """(file, row group, first frame, frames): what is decoded at a time."""
    for file in files:
        try:
            meta = pq.read_metadata(file.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file.path} is damaged ({error}): copy or collect the data set again") from error
        first = file.start
        for group in range(meta.num_row_groups):
            rows = min(meta.row_group(group).num_rows, file.stop - first)
            if rows > 0:
                yield file, group, first, rows
            first += rows


def _decode(info: Info, maps: Mapping[str, np.ndarray], file: DataFile, group: int, first: int, rows: int) -> int:
    columns = [info.columns[camera] for camera in maps]
    try:
        table = pq.ParquetFile(file.path).read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file.path} is damaged ({error}): copy or collect the data set again") from error
    for camera, frames in maps.items():
        column = table[info.columns[camera]].combine_chunks()
        for row, encoded in enumerate(column.field("bytes")[:rows]):
            data = encoded.as_buffer()
            image = None if data is None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            where = f"{file.path}, frame {first + row}, camera {camera!r}"
            if image is None:
                raise UserError(f"{where}: the image does not decode, copy or collect the data set again")
            if image.shape != frames.shape[1:]:
                raise UserError(f"{where}: the image has shape {image.shape}, {INFO} says {frames.shape[1:]}")
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=frames[first + row])
    return rows
