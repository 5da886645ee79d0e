"""Opens a data set for training: vectors in memory, frames memory-mapped, batches of chunks by frame index."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from moe_robot.data.cache import CACHE, DataFile, content_hash, open_frames
from moe_robot.data.episodes import VALIDATION_EVERY, Episodes, episodes_of, held_out
from moe_robot.data.layout import (
    Info,
    read_episodes,
    read_info,
    read_table,
    read_tasks,
    vector_names,
)
from moe_robot.data.statistics import QUANTILES, combine, from_columns, vector_statistics
from moe_robot.data.store import vector_rows
from moe_robot.registry import unknown
from moe_robot.types import ACTION, ACTION_IS_PAD, IMAGE_PREFIX, TASK, TASK_NAME, FeatureStatistics, UserError

Split = Literal["train", "validation", "all"]


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
    ) -> None:
        self.directory, self.features, self.horizon, self.episodes = directory, info.features, horizon, episodes
        self.provenance: Mapping[str, Any] = info.provenance
        self.tasks = tuple(dict.fromkeys(episodes.sentence))
        self._info, self._show, self._cache = info, show_progress, cache or directory / CACHE
        self._files = _data_files(directory, info, table)
        self._vectors, self._task_index = _read_vectors(self._files, info)
        self._sentences = read_tasks(directory)
        if len(self._task_index) and self._task_index.max() >= len(self._sentences):
            raise UserError(
                f"{directory} uses task {self._task_index.max()}: it names {len(self._sentences)} sentences"
            )
        lengths = episodes.stop - episodes.start
        self._rows = np.concatenate([np.arange(a, b) for a, b in zip(episodes.start, episodes.stop, strict=True)])
        self._ends = np.repeat(episodes.stop, lengths)
        self._episode_of_row = np.repeat(np.arange(len(episodes)), lengths)
        self.content_hash = content_hash(directory, self._files, self._cache)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def frames(self) -> Mapping[str, np.ndarray]:
        """Camera -> uint8 (all frames of the data set, H, W, 3), memory-mapped; decoded at first use."""
        with _progress_bar(self._show, self._info, self._files[-1].stop, self._cache) as progress:
            return open_frames(self._info, self._files, self.content_hash, self._cache, progress)

    @cached_property
    def statistics(self) -> dict[str, FeatureStatistics]:
        """Statistics of the chosen episodes by feature: vectors exact, images combined from those of each episode."""
        statistics = {key: vector_statistics(values[self._rows]) for key, values in self._vectors.items()}
        statistics.update(_image_statistics(self.directory, self._info, self.episodes))
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

    def __getstate__(self) -> dict[str, Any]:
        """A worker process opens the maps anew: pickled along, they would be copied frame by frame."""
        return {name: value for name, value in self.__dict__.items() if name != "frames"}


def open_dataset(
    directory: str | Path,
    horizon: int,
    tasks: Sequence[str] | None = None,
    split: Split = "train",
    *,
    cache: str | Path | None = None,
    show_progress: bool | None = None,
) -> Dataset:
    """Open a LeRobot v3 data set whose cameras are stored as encoded images.

    Args:
        directory: the data set.
        horizon: actions per chunk.
        tasks: only episodes of these tasks (environment task names, or sentences where there are none).
        split: see :data:`VALIDATION_EVERY`.
        cache: folder for decoded frames; ``.cache`` in the data set when left out.
        show_progress: a bar while frames are decoded; by default when stderr is a terminal.

    Raises:
        UserError: missing or damaged files, an unknown task, a split without episodes.
    """
    if horizon < 1:
        raise UserError(f"horizon {horizon}: expected at least 1 action per chunk")
    directory = Path(directory)
    info = read_info(directory)
    table = read_episodes(directory, info)
    episodes = episodes_of(table)
    chosen = np.ones(len(episodes), dtype=bool)
    for task in tasks or ():
        if task not in episodes.task:
            raise unknown("task of the data set", task, set(episodes.task))
    if tasks is not None:
        chosen &= np.isin(np.array(episodes.task, dtype=object), list(tasks))
    if split not in ("train", "validation", "all"):
        raise unknown("split", split, ("train", "validation", "all"))
    if split != "all":
        chosen &= held_out(episodes.task) == (split == "validation")
    if not chosen.any():
        raise UserError(
            f"{directory} has no episode for split {split!r}: validation takes every {VALIDATION_EVERY}th episode"
            " of a task, collect more or use another split"
        )
    chosen_episodes = episodes.where(chosen)
    return Dataset(directory, info, table, chosen_episodes, horizon, Path(cache) if cache else None, show_progress)


def _data_files(directory: Path, info: Info, table: pa.Table) -> list[DataFile]:
    names = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
    files: dict[Path, DataFile] = {}
    for chunk, number, start, stop in zip(*(table[name].to_pylist() for name in names), strict=True):
        path = directory / info.data_path.format(chunk_index=chunk, file_index=number)
        known = files.get(path, DataFile(path, start, stop))
        files[path] = replace(known, start=min(known.start, start), stop=max(known.stop, stop))
    return sorted(files.values(), key=lambda file: file.start)


def _read_vectors(files: Sequence[DataFile], info: Info) -> tuple[dict[str, np.ndarray], np.ndarray]:
    vectors = vector_names(info.features)
    blocks: dict[str, list[np.ndarray]] = {key: [] for key in vectors}
    task_index = []
    expected = 0
    for file in files:
        table = read_table(file.path, [*vectors, "task_index"])
        if file.start != expected or table.num_rows < file.stop - file.start:
            raise UserError(
                f"{file.path} holds {table.num_rows} frames from {expected} on: meta/episodes says {file.start} to"
                f" {file.stop}, copy or collect the data set again"
            )
        expected = file.stop
        table = table.slice(0, file.stop - file.start)
        for key, names in vectors.items():
            values = vector_rows(table[key])
            if values.shape[1] != len(names):
                raise UserError(f"{file.path}: {key} has {values.shape[1]} entries, meta/info.json says {len(names)}")
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                frame, entry = bad[0]
                raise UserError(
                    f"{file.path}: {key} entry {names[entry]!r} is not finite at frame {file.start + frame}"
                )
            blocks[key].append(values)
        task_index.append(table["task_index"].to_numpy())
    if expected != info.frames:
        raise UserError(f"the data files hold {expected} frames: meta/info.json says {info.frames}, copy it again")
    return {key: np.concatenate(parts) for key, parts in blocks.items()}, np.concatenate(task_index)


def _image_statistics(directory: Path, info: Info, episodes: Episodes) -> dict[str, FeatureStatistics]:
    table = read_episodes(directory, info, statistics=True).take(pa.array(episodes.index))
    found = {}
    for key in info.columns.values():
        names = [
            n for n in ("min", "max", "mean", "std", "count", *QUANTILES) if f"stats/{key}/{n}" in table.column_names
        ]
        if len(names) < 5:
            raise UserError(
                f"{directory} has no statistics of {key!r} in meta/episodes: compute them with LeRobot's tools"
            )
        columns = [table[f"stats/{key}/{name}"].to_pylist() for name in names]
        found[key] = combine([from_columns(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)])
    return found


@contextmanager
def _progress_bar(
    show: bool | None, info: Info, frames: int, cache: Path
) -> Iterator[Callable[[int, int], None] | None]:
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    from moe_robot.data.cache import cache_bytes

    size = cache_bytes(info, frames) / 1e6
    bar = Progress(console=Console(stderr=True))
    row = bar.add_task(f"decoding {frames} frames once ({size:.0f} MB in {cache.name}/)", total=frames)

    def progress(done: int, total: int) -> None:
        bar.start()  # only when there is something to decode
        bar.update(row, completed=done, total=total)

    try:
        yield progress
    finally:
        bar.stop()
