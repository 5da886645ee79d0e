"""Opens a data set for training: vectors in memory, frames memory-mapped, batches of chunks by frame index."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from moe_robot.data.cache import CACHE, cache_bytes, content_hash, open_frames
from moe_robot.data.columns import STATISTICS, rows_as_stored, vector_rows
from moe_robot.data.episodes import Episodes, episodes_of
from moe_robot.data.frames import DataFile, Progress, data_files, sources, video_clips
from moe_robot.data.layout import PROVENANCE, Info, read_episodes, read_table, read_tasks, vector_names
from moe_robot.data.sampler import batch_indices
from moe_robot.data.selection import (
    Split,
    image_keys,
    parse_episodes,
    read_selected_info,
    select_episodes,
    vector_columns,
)
from moe_robot.data.statistics import ImageStatistics, combine, from_columns, vector_statistics
from moe_robot.data.stream import StreamedFrames
from moe_robot.registry import unknown
from moe_robot.types import ACTION, ACTION_IS_PAD, IMAGE_PREFIX, TASK, TASK_NAME, FeatureStatistics, UserError

FrameSource = Literal["cache", "stream"]
"""Where pictures come from: decoded once into memory maps beside the data set, or anew whenever they are asked for."""
MEASURED_FRAMES = 1000
"""Frames, evenly over the chosen episodes, on which statistics of images are measured where others wrote the data."""


class Dataset:
    """The chosen episodes of a data set, frame by frame. ``len()`` is the number of their frames.

    Attributes:
        directory: where it lies.
        features: cameras, state and action names, control rate.
        tasks: the distinct sentences of the chosen episodes.
        episodes: the chosen episodes.
        provenance: where it came from (``info.json``, key ``moe_robot``), empty for a foreign data set.
        content_hash: of the whole data set; changes with any byte.
        horizon: actions per chunk.
    """

    def __init__(
        self,
        directory: Path,
        info: Info,
        table: pa.Table,
        episodes: Episodes,
        horizon: int,
        cache: Path | None,
        show_progress: bool | None,
        frames: FrameSource = "cache",
    ) -> None:
        self.directory, self.features, self.horizon, self.episodes = directory, info.features, horizon, episodes
        self.provenance: Mapping[str, Any] = info.provenance
        self.tasks = tuple(dict.fromkeys(episodes.sentence))
        self._info, self._show, self._cache, self._how = info, show_progress, cache or directory / CACHE, frames
        self._files, self._clips = data_files(directory, info, table), video_clips(directory, info, table)
        videos = {clip.path: clip for clips in self._clips.values() for clip in clips}
        for path, clip in videos.items():
            if not path.is_file():
                raise UserError(f"{path} is missing: it has frames of episode {clip.episode}, copy the data set again")
        self._vectors, self._task_index = _read_vectors(self._files, info, episodes)
        self._sentences = read_tasks(directory)
        if len(self._task_index) and self._task_index.max() >= len(self._sentences):
            raise UserError(
                f"{directory} uses task {self._task_index.max()}: it names {len(self._sentences)} sentences"
            )
        lengths = episodes.stop - episodes.start
        self._rows = np.concatenate([np.arange(a, b) for a, b in zip(episodes.start, episodes.stop, strict=True)])
        self._ends = np.repeat(episodes.stop, lengths)
        self._episode_of_row = np.repeat(np.arange(len(episodes)), lengths)
        paths = [*(file.path for file in self._files), *videos]
        self.content_hash = content_hash(directory, paths, self._cache)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def total_frames(self) -> int:
        """Frames of the whole data set, chosen or not."""
        return self._files[-1].stop

    @property
    def vectors(self) -> Mapping[str, np.ndarray]:
        """State, action and the environment's state of the chosen frames, float32 (len(self), D)."""
        return {key: values[self._rows] for key, values in self._vectors.items()}

    def further(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns beside the features, those of ``names`` that are there: (all frames of the data set, size)."""
        there = [name for name in names if name in self._info.raw["features"]]
        tables = [(file, read_table(file.path, there)) for file in self._files] if there else []
        cut = [table.slice(0, file.stop - file.start) for file, table in tables]
        return {name: np.concatenate([rows_as_stored(table[name]) for table in cut]) for name in there}

    @cached_property
    def frames(self) -> Mapping[str, np.ndarray | StreamedFrames]:
        """Camera -> uint8 (all frames of the data set, H, W, 3): memory-mapped, decoded at first use; or streamed."""
        found, total = sources(self._info, self._files, self._clips), self._files[-1].stop
        if self._how == "stream":
            sizes, fps = self.features.cameras, self.features.fps
            return {camera: StreamedFrames(found[camera], (*size, 3), fps) for camera, size in sizes.items()}
        with _progress_bar(self._show, self._info, total, self._cache) as progress:
            return open_frames(self._info, found, total, self.content_hash, self._cache, progress)

    @cached_property
    def statistics(self) -> dict[str, FeatureStatistics]:
        """Statistics of the chosen episodes by feature: vectors exact, images combined from those of each episode.

        Where others wrote the data set, images are measured, on up to :data:`MEASURED_FRAMES` frames: LeRobot 0.4
        squares bytes without widening them (its issue 3682), so that its deviations of images are often 0.
        """
        statistics = {key: vector_statistics(values[self._rows]) for key, values in self._vectors.items()}
        if PROVENANCE in self._info.raw:
            return statistics | _image_statistics(self.directory, self._info, self.episodes)
        chosen = self._rows[np.unique(np.linspace(0, len(self) - 1, MEASURED_FRAMES).round().astype(np.int64))]
        for camera, frames in self.frames.items():
            measured = ImageStatistics()
            for row in chosen:
                measured.add(frames[row[None]])
            statistics[IMAGE_PREFIX + camera] = replace(measured.statistics(), count=len(self))
        return statistics

    def batch(self, indices: np.ndarray | Sequence[int]) -> dict[str, Any]:
        """The frames ``indices`` (each in [0, len)) with the actions that follow.

        Returns:
            ``observation.images.<camera>`` uint8 (B, H, W, 3), ``observation.state`` float32 (B, S), ``task`` list of B
            sentences, ``task_name`` list of B environment task names, ``action`` float32 (B, horizon, A) beginning
            with the frame's own action, ``action_is_pad`` bool (B, horizon): true beyond the episode's end, where the
            last action is repeated; ``environment_state`` float32 (B, n) where it was recorded.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"frame {indices.min()} or {indices.max()} is outside 0..{len(self) - 1}")
        rows, ends = self._rows[indices], self._ends[indices]
        steps = rows[:, None] + np.arange(self.horizon)
        batch: dict[str, Any] = {IMAGE_PREFIX + camera: frames[rows] for camera, frames in self.frames.items()}
        batch |= {key: values[rows] for key, values in self._vectors.items() if key != ACTION}
        batch[TASK] = [self._sentences[i] for i in self._task_index[rows]]
        batch[TASK_NAME] = [self.episodes.task[i] for i in self._episode_of_row[indices]]
        batch[ACTION] = self._vectors[ACTION][np.minimum(steps, ends[:, None] - 1)]
        batch[ACTION_IS_PAD] = steps >= ends[:, None]
        return batch

    def draw(self, seed: int, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The indices that :meth:`batch` takes at a step of training (:func:`moe_robot.data.sampler.batch_indices`)."""
        return batch_indices(seed, step, batch_size, len(self), rank, world_size)

    def __getstate__(self) -> dict[str, Any]:
        """A worker process opens the maps anew: pickled along, they would be copied frame by frame."""
        return {name: value for name, value in self.__dict__.items() if name != "frames"}


def open_dataset(
    directory: str | Path,
    horizon: int,
    tasks: Sequence[str] | None = None,
    split: Split = "train",
    *,
    episodes: str | None = None,
    cameras: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    frames: FrameSource = "cache",
    cache: str | Path | None = None,
    show_progress: bool | None = None,
) -> Dataset:
    """Open a LeRobot v3 data set, whoever wrote it.

    Args:
        directory: the data set.
        horizon: actions per chunk.
        tasks: only episodes of these tasks (environment task names, or sentences where there are none).
        split: see :data:`moe_robot.data.episodes.VALIDATION_EVERY`.
        episodes: only these, for example ``"0-99,120"``.
        cameras: only these, by their names after ``rename``.
        rename: foreign names -> ours, see :func:`moe_robot.data.selection.read_selected_info`.
        frames: "cache" decodes every frame once into memory maps, "stream" decodes on demand and needs no disk.
        cache: folder for decoded frames; ``.cache`` in the data set when left out.
        show_progress: a bar while frames are decoded; by default when stderr is a terminal.

    Raises:
        UserError: missing or damaged files, an unknown task, camera or name, a selection without episodes.
    """
    if horizon < 1:
        raise UserError(f"horizon {horizon}: expected at least 1 action per chunk")
    if frames not in ("cache", "stream"):
        raise unknown("source of frames", frames, ("cache", "stream"))
    directory = Path(directory)
    info = read_selected_info(directory, cameras, rename)
    table = read_episodes(directory, info)
    ranges = parse_episodes(episodes) if episodes is not None else None
    chosen = select_episodes(directory, episodes_of(table), tasks, split, ranges)
    return Dataset(directory, info, table, chosen, horizon, Path(cache) if cache else None, show_progress, frames)


def _read_vectors(files: Sequence[DataFile], info: Info, chosen: Episodes) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Key -> float32 (all frames, D), and the task index of every frame. Only chosen episodes must be finite."""
    names, columns = vector_names(info.features), vector_columns(info)
    blocks: dict[str, list[np.ndarray]] = {key: [] for key in names}
    task_index = []
    expected = 0
    for file in files:
        try:
            table = read_table(file.path, [*columns.values(), "task_index"])
        except UserError as error:
            mine = chosen.index[(chosen.start >= file.start) & (chosen.start < file.stop)]
            which = f"; episodes {mine[0]} to {mine[-1]} are in it" if len(mine) else ""
            raise UserError(f"{error}{which}; inspect --repair keeps the rest") from error
        if file.start != expected or table.num_rows < file.stop - file.start:
            raise UserError(
                f"{file.path} holds {table.num_rows} frames from {expected} on: meta/episodes says {file.start} to"
                f" {file.stop}, copy or collect the data set again"
            )
        expected = file.stop
        table = table.slice(0, file.stop - file.start)
        for key, entries in names.items():
            values = vector_rows(table[columns[key]])
            if values.shape[1] != len(entries):
                raise UserError(f"{file.path}: {key} has {values.shape[1]} entries, meta/info.json says {len(entries)}")
            blocks[key].append(values)
        task_index.append(table["task_index"].to_numpy())
    if expected != info.frames:
        raise UserError(f"the data files hold {expected} frames: meta/info.json says {info.frames}, copy it again")
    vectors = {key: np.concatenate(parts) for key, parts in blocks.items()}
    for key, entries in names.items():
        for episode, start, stop in zip(chosen.index, chosen.start, chosen.stop, strict=True):
            bad = np.argwhere(~np.isfinite(vectors[key][start:stop]))
            if len(bad):
                path = next(file.path for file in files if file.start <= start < file.stop)
                raise UserError(
                    f"{path}: {key} entry {entries[bad[0][1]]!r} is not finite at frame {bad[0][0]} of episode"
                    f" {episode}: leave the episode out or record it again"
                )
    return vectors, np.concatenate(task_index)


def _image_statistics(directory: Path, info: Info, episodes: Episodes) -> dict[str, FeatureStatistics]:
    table = read_episodes(directory, info, statistics=True).take(pa.array(episodes.index))
    found = {}
    for ours, key in image_keys(info).items():
        names = [name for name in STATISTICS if f"stats/{key}/{name}" in table.column_names]
        if len(names) < 5:
            raise UserError(
                f"{directory} has no statistics of {key!r} in meta/episodes: compute them with LeRobot's tools"
            )
        columns = [table[f"stats/{key}/{name}"].to_pylist() for name in names]
        found[ours] = combine([from_columns(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)])
    return found


@contextmanager
def _progress_bar(show: bool | None, info: Info, frames: int, cache: Path) -> Iterator[Progress | None]:
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    size = cache_bytes(info.features.cameras.values(), frames) / 1e6
    bar = Progress(console=Console(stderr=True))
    row = bar.add_task(f"decoding {frames} frames once ({size:.0f} MB in {cache.name}/)", total=None)

    def progress(done: int, total: int) -> None:
        bar.start()  # only when there is something to decode
        bar.update(row, completed=done, total=total)

    try:
        yield progress
    finally:
        bar.stop()
