"""Decodes every frame once into memory-mapped uint8 arrays beside the data set, shared by all its readers.

A cache belongs to the content of the data set (:func:`content_hash`), not to its name or time stamps: whatever changes
in the data set, the old cache is not found any more and is removed by the next build.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from moe_robot.data.durable import TEMPORARY, disk_errors, only_writer, sync_directory, write_json
from moe_robot.data.frames import Progress, Source, decode_source
from moe_robot.data.layout import INFO, STATS, TASKS, Info
from moe_robot.types import IMAGE_PREFIX, UserError

CACHE = ".cache"
_HASHES = "hashes.json"


def content_hash(directory: Path, files: Iterable[Path], cache: Path | None = None) -> str:
    """A hash of every byte of the data set: its meta files and ``files`` (data and videos), whichever of them exist.

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
    paths += sorted(files)
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
        with only_writer(memory.parent, wait=True):  # readers of one data set may begin at the same moment
            write_json(memory, fresh)
    return total.hexdigest()


def open_frames(
    info: Info,
    found: Mapping[str, Sequence[Source]],
    frames: int,
    content: str,
    cache: Path,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Read-only memory maps camera -> uint8 (frames, H, W, 3) RGB, decoded first if this content has none yet.

    Args:
        info: of the data set.
        found: what each camera's frames are decoded from (:func:`moe_robot.data.frames.sources`).
        frames: of the data set.
        content: its :func:`content_hash`.
        cache: folder of the caches of this data set.
        progress: called while decoding.

    Raises:
        UserError: a frame is missing, does not decode or has the wrong size, the disk is full.
    """
    shapes = {camera: (frames, *size, 3) for camera, size in info.features.cameras.items()}
    paths = {camera: cache / content / f"{_file_name(info.columns[camera])}.uint8" for camera in shapes}
    if not all(path.is_file() for path in paths.values()):
        with disk_errors(cache, kept="nothing is lost"), only_writer(cache, wait=True):
            missing = {c: path for c, path in paths.items() if not path.is_file()}  # another process may have built it
            if missing:
                _build(info, {c: found[c] for c in missing}, {c: shapes[c] for c in missing}, missing, progress)
    return {c: np.memmap(path, dtype=np.uint8, mode="r", shape=shapes[c]) for c, path in paths.items()}


def cache_bytes(sizes: Iterable[Sequence[int]], frames: int) -> int:
    """Disk space of the decoded frames of cameras of these sizes (height, width)."""
    return frames * sum(height * width * 3 for height, width in sizes)


def _file_name(key: str) -> str:
    return key.removeprefix(IMAGE_PREFIX).replace("/", "_")


def _build(
    info: Info,
    found: Mapping[str, Sequence[Source]],
    shapes: Mapping[str, tuple[int, ...]],
    paths: Mapping[str, Path],
    progress: Progress | None,
) -> None:
    """Decode these cameras. A file gets its name when it is complete, so what has its name is complete."""
    total, folder = max(shape[0] for shape in shapes.values()), next(iter(paths.values())).parent
    for old in [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]:  # content that is gone
        shutil.rmtree(old)
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(f"*{TEMPORARY}"):
        leftover.unlink()
    need, free = cache_bytes((shape[1:3] for shape in shapes.values()), total), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"the frame cache needs {need / 1e9:.2f} GB in {folder.parent}, {free / 1e9:.2f} GB are free:"
            " free some space, choose another cache directory, or read without a cache (frames='stream')"
        )
    building = {camera: path.with_name(path.name + TEMPORARY) for camera, path in paths.items()}
    maps = {c: np.memmap(path, dtype=np.uint8, mode="w+", shape=shapes[c]) for c, path in building.items()}
    jobs = [(camera, source) for camera, mine in found.items() for source in mine]
    workers = max(1, len(os.sched_getaffinity(0)))
    tally = _Tally(total * len(shapes), progress)

    def decode(job: tuple[str, Source]) -> None:
        camera, source = job
        for index, frame in decode_source(source, shapes[camera][1:], info.features.fps, -(-workers // len(jobs))):
            maps[camera][index] = frame
            tally.count()

    # cv2 and PyAV decode without holding the interpreter lock: threads share the maps and use all cores.
    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in pool.map(decode, jobs):
                pass
        except BaseException:
            tally.stopped = True
            pool.shutdown(wait=True, cancel_futures=True)
            for path in building.values():
                path.unlink(missing_ok=True)
            raise
    for camera, frames in maps.items():
        frames.flush()
        building[camera].rename(paths[camera])
    sync_directory(folder)


class _Tally:
    """Counts the frames of all threads; whoever counts learns that the work was stopped."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.stopped = False
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def count(self) -> None:
        if self.stopped:
            raise InterruptedError("decoding was stopped")
        with self._lock:
            self._done += 1
            if self._progress is not None and (self._done % 32 == 0 or self._done == self._total):
                self._progress(self._done, self._total)
