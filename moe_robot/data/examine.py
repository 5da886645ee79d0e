"""Looks a data set over without trusting it: what is in it, and everything in it that is not as it should be.

Nothing is raised for damage inside the data set: it is noted, with the file and the episodes that it touches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_robot.data.columns import vector_rows
from moe_robot.data.episodes import Episodes, episodes_of
from moe_robot.data.frames import DataFile, data_files, video_clips
from moe_robot.data.layout import (
    INFO,
    PROVENANCE,
    SCALARS,
    STATS,
    Info,
    read_episodes,
    read_info,
    read_table,
    vector_names,
)
from moe_robot.data.selection import vector_columns
from moe_robot.data.statistics import load_statistics, vector_statistics
from moe_robot.data.video import decode
from moe_robot.types import UserError

BINS = 24
STILL = 1e-6
"""An entry whose values lie closer together than this part of their size (or of 1) did not move."""
AT_THE_END = 0.25
"""An entry that spends this share of all frames at one end of its range, and moves otherwise, is saturated."""
NEAR = 1e-3
"""How near an end counts as at it, as a part of the range."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: "damage" (the episodes cannot be used), "time", "duplicate", "range", "dead", "saturated" or "left over".
        message: one sentence that names the file or the entry.
        episodes: the episodes that it touches; empty for all or none.
    """

    kind: str
    message: str
    episodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        summary: totals, origin and sizes, JSON-ready.
        features: one row per feature.
        tasks: one row per task: name, episodes, frames.
        entries: one row per entry of state and action: statistics and a histogram.
        lengths: frames of every episode.
        problems: in the order of severity.
    """

    summary: dict[str, Any]
    features: list[dict[str, Any]]
    tasks: list[dict[str, Any]]
    entries: list[dict[str, Any]]
    lengths: list[int]
    problems: list[Problem]

    @property
    def bad_episodes(self) -> set[int]:
        """Episodes that cannot be used."""
        return {episode for problem in self.problems if problem.kind == "damage" for episode in problem.episodes}

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def examine(directory: str | Path, decode_videos: bool = False) -> Examination:
    """Look a data set over.

    Args:
        directory: the data set.
        decode_videos: also decode every frame of every video; otherwise videos only have to be there.

    Raises:
        UserError: there is no data set, or its meta files cannot be read at all.
    """
    directory = Path(directory)
    info = read_info(directory)
    table = read_episodes(directory, info)
    episodes = episodes_of(table)
    files = data_files(directory, info, table)
    problems: list[Problem] = []
    vectors: dict[str, list[np.ndarray]] = {key: [] for key in vector_names(info.features)}
    owners: list[np.ndarray] = []  # episode of every row of the vectors
    seen: dict[bytes, int] = {}
    for file in files:
        mine = [i for i in range(len(episodes)) if file.start <= episodes.start[i] < file.stop]
        for episode, values in _episodes_of_file(file, info, episodes, mine, problems):
            first = seen.setdefault(_digest(values), episode)
            if first != episode:
                what = f"episode {episode} has the same states and actions as episode {first}"
                problems.append(Problem("duplicate", what, (first, episode)))
            for key, blocks in vectors.items():
                blocks.append(values[key])
            owners.append(np.full(len(next(iter(values.values()))), episode))
    problems += list(_video_problems(directory, info, table, decode_videos))
    whole = {key: np.concatenate(blocks) for key, blocks in vectors.items() if blocks}
    entries = _entries(info, whole)
    problems += list(_entry_problems(entries)) + list(_range_problems(directory, whole, owners, info))
    problems += [
        Problem("left over", f"{path.relative_to(directory)} was being written when its writer was killed: delete it")
        for path in sorted(directory.rglob("*.tmp"))
        if ".cache" not in path.parts
    ]
    order = ("damage", "time", "range", "duplicate", "dead", "saturated", "left over")
    return Examination(
        _summary(directory, info, episodes),
        _features(info),
        _tasks(episodes),
        entries,
        (episodes.stop - episodes.start).tolist(),
        sorted(problems, key=lambda problem: order.index(problem.kind)),
    )


def _episodes_of_file(
    file: DataFile, info: Info, episodes: Episodes, mine: Sequence[int], problems: list[Problem]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The usable episodes of a data file, with their vectors; the others are noted."""
    columns = vector_columns(info)
    try:
        table = read_table(file.path, [*columns.values(), "timestamp", "episode_index", "frame_index"])
        whole = {key: vector_rows(table[column]) for key, column in columns.items()}
    except (UserError, ValueError) as error:
        problems.append(Problem("damage", str(error) or f"{file.path} is empty", tuple(mine)))
        return
    times, numbers = (table[name].to_numpy() for name in ("timestamp", "episode_index"))
    for i in mine:
        rows = slice(int(episodes.start[i]) - file.start, int(episodes.stop[i]) - file.start)
        length, where = rows.stop - rows.start, f"{file.path}, episode {i}"
        if not (np.array_equal(numbers[rows], np.full(length, i))):
            problems.append(Problem("damage", f"{where}: its {length} frames are not all there", (i,)))
            continue
        values = {key: rows_of[rows] for key, rows_of in whole.items()}
        bad = [(key, np.argwhere(~np.isfinite(v))) for key, v in values.items() if not np.isfinite(v).all()]
        if bad:
            key, places = bad[0]
            name = vector_names(info.features)[key][places[0][1]]
            what = f"{where}: {key} entry {name!r} is not finite at frame {places[0][0]}"
            problems.append(Problem("damage", what, (i,)))
            continue
        steps = np.diff(times[rows].astype(np.float64)) * info.features.fps
        off = np.flatnonzero(np.abs(steps - 1) > 0.1)
        if len(off):
            first = f"the first after frame {off[0]}, of {steps[off[0]]:.2f} steps"
            what = f"{where}: its time stamps have {len(off)} gaps, {first}"
            problems.append(Problem("time", what, (i,)))
        yield i, values


def _digest(values: dict[str, np.ndarray]) -> bytes:
    parts = hashlib.blake2b(digest_size=16)
    for key in sorted(values):
        parts.update(np.ascontiguousarray(values[key]).tobytes())
    return parts.digest()


def _video_problems(directory: Path, info: Info, table: pa.Table, decode_videos: bool) -> Iterator[Problem]:
    try:
        found = video_clips(directory, info, table)
    except UserError as error:
        yield Problem("damage", str(error), tuple(range(info.episodes)))
        return
    for camera, clips in found.items():
        for path in dict.fromkeys(clip.path for clip in clips):
            mine = [clip for clip in clips if clip.path == path]
            ends = {clip.episode: clip.time + (clip.length - 1) / info.features.fps for clip in mine}
            last, half = -1.0, 0.5 / info.features.fps
            try:
                if not path.is_file():
                    raise UserError(f"{path} is missing")
                if not decode_videos:
                    continue
                for time, frame in decode(path):
                    last = time
                    if frame.shape[:2] != info.features.cameras[camera]:
                        raise UserError(f"{path} shows {frame.shape[:2]}, {INFO} says {info.features.cameras[camera]}")
            except UserError as error:
                touched = [episode for episode, end in ends.items() if end > last + half]
                yield Problem("damage", f"{error} (camera {camera!r})", tuple(touched or ends))
                continue
            if short := [episode for episode, end in ends.items() if end > last + half]:
                yield Problem("damage", f"{path} ends at {last:.3f} s, before its episodes do", tuple(short))


def _entries(info: Info, whole: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    rows = []
    for key, names in vector_names(info.features).items():
        if key not in whole:
            continue
        values = whole[key].astype(np.float64)
        statistics = vector_statistics(values)
        for i, name in enumerate(names):
            low, high = statistics.min[i], statistics.max[i]
            size, near = max(1.0, abs(low), abs(high)), NEAR * (high - low)
            still = high - low < STILL * size
            counts, _ = np.histogram(values[:, i], bins=BINS, range=(low, high) if not still else (low - 1, low + 1))
            at_ends = (values[:, i] <= low + near).mean(), (values[:, i] >= high - near).mean()
            numbers = {"min": low, "max": high, "mean": statistics.mean[i], "std": statistics.std[i]}
            numbers |= {q: of[i] for q, of in statistics.quantiles.items()}
            rows.append(
                {
                    "feature": key,
                    "name": name,
                    **{k: float(v) for k, v in numbers.items()},
                    "dead": bool(still),
                    "at_min": 0.0 if still else float(at_ends[0]),
                    "at_max": 0.0 if still else float(at_ends[1]),
                    "distinct": int(min(100, len(np.unique(values[:, i])))),
                    "histogram": counts.tolist(),
                }
            )
    return rows


def _entry_problems(entries: Sequence[dict[str, Any]]) -> Iterator[Problem]:
    for row in entries:
        where = f"{row['feature']} entry {row['name']!r}"
        if row["dead"]:
            yield Problem("dead", f"{where} never moves: it is {row['min']:.6g} in every frame")
        elif max(row["at_min"], row["at_max"]) > AT_THE_END and row["distinct"] > 10:  # a gripper has only two values
            share, end = max((row["at_min"], "lower"), (row["at_max"], "upper"))
            yield Problem("saturated", f"{where} is at the {end} end of its range in {share:.0%} of the frames")


def _range_problems(
    directory: Path, whole: dict[str, np.ndarray], owners: Sequence[np.ndarray], info: Info
) -> Iterator[Problem]:
    """Values outside of what the data set states as their extremes."""
    try:
        stated = load_statistics(directory)
    except UserError as error:
        yield Problem("damage", str(error))
        return
    for key, column in vector_columns(info).items():
        if column not in stated or key not in whole:
            continue
        low, high = stated[column].min, stated[column].max
        slack = 1e-5 * np.maximum(1, np.maximum(np.abs(low), np.abs(high)))
        outside = (whole[key] < low - slack) | (whole[key] > high + slack)
        for i in np.flatnonzero(outside.any(axis=0)):
            name, n = vector_names(info.features)[key][i], int(outside[:, i].sum())
            what = f"{key} entry {name!r} is outside the range {low[i]:.6g} to {high[i]:.6g} of {STATS} in {n} frames"
            touched = np.unique(np.concatenate(owners)[outside[:, i]])
            yield Problem("range", what, tuple(touched.tolist()))


def _summary(directory: Path, info: Info, episodes: Episodes) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {
        "data": str(directory),
        "version": info.raw["codebase_version"],
        "robot": info.raw.get("robot_type"),
        "environment": info.provenance.get("environment"),
        "written_by": "moe_robot" if PROVENANCE in info.raw else "others",
        "episodes": info.episodes,
        "frames": info.frames,
        "fps": info.features.fps,
        "seconds": info.frames / info.features.fps,
        "bytes": size,
        "sentences": len(set(episodes.sentence)),
    }


def _features(info: Info) -> list[dict[str, Any]]:
    rows = []
    for key, feature in info.raw["features"].items():
        used = key in info.columns.values() or key in SCALARS
        codec = (feature.get("info") or {}).get("video.codec")
        dtype = f"video ({codec})" if codec else feature["dtype"]
        names = feature.get("names")
        rows.append({"name": key, "dtype": dtype, "shape": feature["shape"], "names": names, "used": used})
    return rows


def _tasks(episodes: Episodes) -> list[dict[str, Any]]:
    lengths = episodes.stop - episodes.start
    rows = []
    for task in dict.fromkeys(episodes.task):
        mine = [i for i, name in enumerate(episodes.task) if name == task]
        example = episodes.sentence[mine[0]]
        rows.append({"task": task, "episodes": len(mine), "frames": int(lengths[mine].sum()), "example": example})
    return rows
