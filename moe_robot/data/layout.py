"""LeRobot's data set layout v3.0 on disk: names of files and columns, and how its meta files are read.

One data set is ``meta/info.json`` (features, totals), ``meta/tasks.parquet`` (sentences), ``meta/stats.json``,
``meta/episodes/chunk-*/file-*.parquet`` (one row per episode), ``data/chunk-*/file-*.parquet`` (one row per frame) and,
for cameras stored as video, ``videos/<key>/chunk-*/file-*.mp4``.
``meta/info.json`` is written last: its ``total_episodes`` is the number of episodes that are complete. What is written
into the files says :mod:`moe_robot.data.schema`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moe_robot.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Features, UserError

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO, TASKS, STATS = "meta/info.json", "meta/tasks.parquet", "meta/stats.json"
PROVENANCE = "moe_robot"
"""Key of ``info.json`` under which we keep where the data came from; LeRobot leaves unknown keys alone."""

SCALARS: dict[str, pa.DataType] = {
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
}
EXTRAS: dict[str, pa.DataType] = {
    "env_task": pa.string(),
    "seed": pa.int64(),
    "success": pa.bool_(),
    "attempts": pa.int64(),
    "noise": pa.float64(),
}
"""Columns we add to ``meta/episodes``: the environment's task name, the seed of the layout, whether it succeeded, how
many rollouts it took, and the noise scale of this one. Empty where a recording knows no such thing."""

PNG = "png"
"""Cameras stored as one losslessly encoded image per frame; otherwise as a video of this codec."""
_PICTURES = ("image", "video")


@dataclass(frozen=True)
class Info:
    """What ``meta/info.json`` says.

    Attributes:
        features: cameras, state and action names, control rate.
        storage: camera -> ``"image"`` (encoded frames in the data files) or ``"video"``.
        columns: camera -> its key in the files, ``observation.images.<camera>`` in our data sets; likewise for vectors
            (``observation.state``, ``action``, ``environment_state``), whose keys a rename map may have changed.
        episodes: number of complete episodes.
        frames: their frames.
        data_path: template of the data files.
        video_path: template of the video files, None where there are none.
        provenance: our own record of the origin, empty for a foreign data set.
        raw: the whole file.
    """

    features: Features
    storage: Mapping[str, str]
    columns: Mapping[str, str]
    episodes: int
    frames: int
    data_path: str
    video_path: str | None
    provenance: Mapping[str, Any]
    raw: Mapping[str, Any]


def chunk_and_file(number: int) -> dict[str, int]:
    """The folder and file numbers of the ``number``-th file, to fill a path template."""
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def vector_names(features: Features) -> dict[str, tuple[str, ...]]:
    """The vectors that a frame carries -> the names of their entries."""
    vectors = {STATE: features.state_names, ACTION: features.action_names}
    return vectors | ({ENVIRONMENT_STATE: features.environment_names} if features.environment_names else {})


def read_info(directory: str | Path, keys: Mapping[str, str] | None = None) -> Info:
    """Read ``meta/info.json``, with ``keys`` a map from foreign feature keys to ours where they differ.

    Raises:
        UserError: there is none, it is broken, of another version, or lacks a state or an action.
    """
    path = Path(directory) / INFO
    if not path.is_file():
        raise UserError(f"no data set at {directory}: expected {INFO} of a LeRobot v3 data set (see moe-robot collect)")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["codebase_version"]
        if version != CODEBASE_VERSION:
            raise UserError(
                f"{path} is LeRobot {version}: expected {CODEBASE_VERSION}, convert it with LeRobot's tools"
            )
        ours = dict(keys or {})
        in_files: dict[str, str] = {ours.get(key, key): key for key in map(str, raw["features"])}
        described: dict[str, Any] = {name: raw["features"][key] for name, key in in_files.items()}
        missing = [key for key in (STATE, ACTION) if key not in described]
        if missing:
            raise UserError(
                f"{path} has no feature {missing[0]!r}: expected {STATE!r} and {ACTION!r}, it has"
                f" {', '.join(key for key in described if key not in SCALARS)}; say which is which with a rename map"
            )
        images = {key.removeprefix(IMAGE_PREFIX): key for key in described if described[key]["dtype"] in _PICTURES}
        vectors = [key for key in (STATE, ACTION, ENVIRONMENT_STATE) if key in described]
        cameras = {camera: described[key] for camera, key in images.items()}
        return Info(
            features=Features(
                cameras={camera: _image_size(feature) for camera, feature in cameras.items()},
                state_names=_vector_names(described[STATE], "state"),
                action_names=_vector_names(described[ACTION], "action"),
                fps=int(raw["fps"]),
                environment_names=_vector_names(described[ENVIRONMENT_STATE], "environment")
                if ENVIRONMENT_STATE in described
                else (),
            ),
            columns={name: in_files[key] for name, key in (images | {key: key for key in vectors}).items()},
            storage={camera: feature["dtype"] for camera, feature in cameras.items()},
            episodes=int(raw["total_episodes"]),
            frames=int(raw["total_frames"]),
            data_path=raw["data_path"],
            video_path=raw.get("video_path"),
            provenance=raw.get(PROVENANCE, {}),
            raw=raw,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}): expected LeRobot v3 info") from error


def _image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    shape, names = feature["shape"], feature.get("names")
    if names and names[0] in ("channel", "channels"):
        return int(shape[1]), int(shape[2])
    return int(shape[0]), int(shape[1])


def _vector_names(feature: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """LeRobot allows a list of names, a dict of one list (``{"motors": [...]}``), or nothing."""
    if len(feature["shape"]) != 1:
        raise ValueError(f"the {kind} has shape {feature['shape']}, expected one dimension")
    names, size = feature.get("names"), int(feature["shape"][0])
    if isinstance(names, Mapping):
        names = next(iter(names.values()), None)
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != size:
        return tuple(f"{kind}_{i}" for i in range(size))
    return tuple(map(str, names))


def read_tasks(directory: str | Path) -> tuple[str, ...]:
    """The sentences by ``task_index``."""
    table = read_table(Path(directory) / TASKS)
    column = next((name for name in ("__index_level_0__", "task") if name in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise UserError(
            f"{Path(directory) / TASKS} has columns {table.column_names}: expected task_index and sentences"
        )
    by_index = dict(zip(table["task_index"].to_pylist(), table[column].to_pylist(), strict=True))
    return tuple(str(by_index[i]) for i in sorted(by_index))


def all_columns(path: Path) -> list[str]:
    """The column names of a Parquet file, statistics included."""
    try:
        return pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}): copy the data set again") from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file (without columns of statistics), or say in one line which file is missing or damaged."""
    try:
        file = pq.ParquetFile(path)
        if columns is None:
            columns = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        return file.read(columns=list(columns))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the data set is incomplete, copy or collect it again") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}): copy or collect the data set again") from error


def read_episodes(directory: str | Path, info: Info, statistics: bool = False) -> pa.Table:
    """The complete episodes, one row each, ordered by ``episode_index``, with or without their statistics columns.

    Raises:
        UserError: a file is missing or damaged, or fewer episodes are listed than ``info`` says are complete.
    """
    directory = Path(directory)
    if info.episodes == 0:
        raise UserError(f"{directory} holds no finished episode: collect again into it")
    tables = []
    for path in sorted((directory / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        tables.append(read_table(path, all_columns(path) if statistics else None))
    if not tables:
        raise UserError(f"{directory}/meta/episodes is missing: {INFO} says {info.episodes} episodes, copy it again")
    table = pa.concat_tables(tables, promote_options="default").sort_by("episode_index")
    listed = [i for i in table["episode_index"].to_pylist() if i < info.episodes]
    if listed != list(range(info.episodes)):
        raise UserError(
            f"{directory}/meta/episodes lists {len(listed)} episodes: {INFO} says {info.episodes}, copy it again"
        )
    return table.slice(0, info.episodes)
