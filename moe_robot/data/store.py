"""Writes a LeRobot v3 data set that is complete and readable after every commit, whatever kills the writer.

Order of a commit: videos, data file, episodes file, tasks, statistics, and ``meta/info.json`` last
(:func:`moe_robot.data.durable.write_together`). Readers trust
``total_episodes`` of ``info.json``, so a kill between any two files leaves the earlier state. The newest data file
grows until it and its videos (one per camera, with its number) hold :data:`FILE_BYTES`, and is rewritten (atomically)
by each commit until then; where one file ends depends on the episodes alone, so the same episodes give the same files,
bit for bit, however often the writer stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_robot.data.columns import STATISTICS, encoded_bytes, episodes_schema, vector_rows
from moe_robot.data.durable import json_writer, write_together
from moe_robot.data.layout import (
    DATA_PATH,
    EPISODES_PATH,
    EXTRAS,
    FILES_PER_CHUNK,
    INFO,
    PNG,
    SCALARS,
    STATS,
    TASKS,
    VIDEO_PATH,
    chunk_and_file,
    read_episodes,
    read_info,
    read_table,
    read_tasks,
    vector_names,
)
from moe_robot.data.record import EpisodeRecord
from moe_robot.data.schema import Columns, data_schema, info_json, tasks_table
from moe_robot.data.statistics import combine, from_columns, to_columns, vector_statistics
from moe_robot.data.video import content_bytes, cut_videos, join_videos
from moe_robot.types import IMAGE_PREFIX, Features, FeatureStatistics, UserError

FILE_BYTES = 32 * 2**20
"""A data file that holds this much takes no further episode. It bounds what one commit rewrites."""


class DatasetWriter:
    """Appends finished episodes to a data set. One writer at a time (:func:`moe_robot.data.durable.only_writer`).

    Attributes:
        episodes: number of episodes on disk or waiting for the next commit.
        frames: their frames.
    """

    def __init__(
        self,
        directory: str | Path,
        features: Features,
        provenance: Mapping[str, Any],
        codec: str = PNG,
        further: Columns | None = None,
    ) -> None:
        """Begin a data set in ``directory``, or go on with the one that is there.

        Args:
            directory: of the data set.
            features: of every episode.
            provenance: where the data comes from, kept in ``info.json``.
            codec: how the frames of every episode are stored, see :class:`moe_robot.data.record.EpisodeBuilder`.
            further: columns beside the features.

        Raises:
            UserError: the directory holds another data set: the first difference is named.
        """
        self.directory = Path(directory)
        self.features, self.codec = features, codec
        self._schema, self._further = data_schema(features, codec, further), further or {}
        self.provenance = json.loads(json.dumps(dict(provenance)))  # as it reads back: lists for tuples
        self.episodes = self.frames = 0
        self._sentences: dict[str, int] = {}
        self._statistics: dict[str, list[FeatureStatistics]] = {}
        self._vectors: dict[str, list[np.ndarray]] = {key: [] for key in vector_names(features)}
        self._file = 0  # number of the data file that takes the next episode
        self._tables: list[pa.Table] = []  # its episodes so far
        self._videos: dict[str, list[bytes]] = {camera: [] for camera in features.cameras if codec != PNG}
        self._rows: list[dict[str, Any]] = []  # their rows of meta/episodes
        self._bytes = 0
        self._changed = False
        if (self.directory / INFO).exists():
            self._go_on()
        else:
            self._begin()

    def append(self, record: EpisodeRecord) -> None:
        """Add an episode as the last one. It is on disk after the next :meth:`commit`."""
        if self._bytes >= FILE_BYTES:
            self.commit()
            self._file, self._tables, self._rows, self._bytes = self._file + 1, [], [], 0
            self._videos = {camera: [] for camera in self._videos}
        if record.videos.keys() != self._videos.keys():
            raise ValueError(f"the episode has videos of {list(record.videos)}, the data set of {list(self._videos)}")
        n, first = len(record), self.frames
        task = self._sentences.setdefault(record.sentence, len(self._sentences))
        steps = np.arange(n)
        scalars = {
            "timestamp": (steps / self.features.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(n, self.episodes),
            "index": first + steps,
            "task_index": np.full(n, task),
        }
        columns = {name: record.frames[name] for name in record.frames.column_names}
        columns |= {name: pa.array(values, SCALARS[name]) for name, values in scalars.items()}
        table = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        statistics = {**record.statistics, **{k: vector_statistics(v[:, None]) for k, v in scalars.items()}}
        self._rows.append(
            {
                "episode_index": self.episodes,
                "tasks": [record.sentence],
                "length": n,
                **{f"data/{key}": value for key, value in chunk_and_file(self._file).items()},
                "dataset_from_index": first,
                "dataset_to_index": first + n,
                **self._video_columns(n),
                **{name: record.extras.get(name) for name in EXTRAS},
                **{
                    f"stats/{key}/{name}": value
                    for key, part in statistics.items()
                    for name, value in to_columns(part, image=key.startswith(IMAGE_PREFIX)).items()
                },
                **{f"meta/episodes/{key}": value for key, value in chunk_and_file(self._file).items()},
            }
        )
        self._take(table, statistics, record.videos)
        self.episodes += 1
        self.frames += n
        self._changed = True

    def commit(self) -> None:
        """Make every appended episode durable and visible to readers."""
        if not self._changed:
            return
        numbers = chunk_and_file(self._file)
        combined = {key: combine(parts) for key, parts in self._statistics.items()}
        for key, blocks in self._vectors.items():  # vectors are small: their quantiles are exact, not averaged
            combined[key] = replace(combined[key], quantiles=vector_statistics(np.concatenate(blocks)).quantiles)
        stats = {key: to_columns(value, image=key.startswith(IMAGE_PREFIX)) for key, value in combined.items()}
        keys = {IMAGE_PREFIX + camera: videos for camera, videos in self._videos.items()}
        write_together(
            [
                *(
                    (self.directory / VIDEO_PATH.format(video_key=key, **numbers), partial(self._write_video, videos))
                    for key, videos in keys.items()
                ),
                (self.directory / DATA_PATH.format(**numbers), self._write_data),
                (self.directory / EPISODES_PATH.format(**numbers), self._write_episodes),
                (self.directory / TASKS, self._write_tasks),
                (self.directory / STATS, json_writer(stats)),
                (self.directory / INFO, json_writer(self._info())),
            ]
        )
        self._changed = False

    def _begin(self) -> None:
        strangers = [path.name for path in self.directory.glob("*") if not path.name.startswith(".")]
        if strangers:
            raise UserError(
                f"{self.directory} is not empty and no data set (it holds {strangers[0]!r}): choose another directory"
            )
        write_together(
            [(self.directory / TASKS, self._write_tasks), (self.directory / INFO, json_writer(self._info()))]
        )

    def _go_on(self) -> None:
        info = read_info(self.directory)
        self._refuse_another(info.features, info.provenance)
        described = (info.raw["features"][info.columns[camera]] for camera in info.features.cameras)
        stored = {feature.get("info", {}).get("video.codec", PNG) for feature in described}
        if stored - {self.codec}:
            raise UserError(
                f"{self.directory} holds another data set (frames are {', '.join(stored)}, expected {self.codec}):"
                " choose another directory or the same settings"
            )
        mine = info_json(self.features, 0, 0, 0, {}, self.codec, self._further)["features"]
        if mine.keys() != info.raw["features"].keys():
            key = sorted(mine.keys() ^ info.raw["features"].keys())[0]
            raise UserError(f"{self.directory} holds another data set (feature {key!r}): choose another directory")
        if info.episodes == 0:
            return
        table = read_episodes(self.directory, info, statistics=True)
        for number, sentence in enumerate(read_tasks(self.directory)):
            self._sentences[sentence] = number
        self.episodes, self.frames = info.episodes, info.frames
        keys = [
            name.split("/")[1] for name in table.column_names if name.startswith("stats/") and name.endswith("/mean")
        ]
        rows = table.to_pylist()
        files = [row["data/chunk_index"] * FILES_PER_CHUNK + row["data/file_index"] for row in rows]
        self._file = files[-1]
        for number in sorted(set(files)):
            mine = [row for row, file in zip(rows, files, strict=True) if file == number]
            last = number == self._file
            path = self.directory / DATA_PATH.format(**chunk_and_file(number))
            data = read_table(path, self._schema.names if last else list(self._vectors))
            start = mine[0]["dataset_from_index"]
            clips = self._read_videos([row["length"] for row in mine]) if last else {}
            for k, row in enumerate(mine):
                frames = data.slice(row["dataset_from_index"] - start, row["length"])
                if frames.num_rows != row["length"]:
                    raise UserError(f"{path} ends before episode {row['episode_index']}: copy or collect it again")
                statistics = {
                    key: from_columns({name: row[f"stats/{key}/{name}"] for name in STATISTICS}) for key in keys
                }
                videos = {camera: parts[k] for camera, parts in clips.items()}
                self._take(frames.cast(self._schema) if last else frames, statistics, videos, buffer=last)
            if last:
                self._rows = mine

    def _video_columns(self, length: int) -> dict[str, Any]:
        """Where the videos of the next episode lie, in seconds: times of frames, so that they add up exactly."""
        before, columns = sum(row["length"] for row in self._rows), {}
        for camera in self._videos:
            key = f"videos/{IMAGE_PREFIX}{camera}"
            columns |= {f"{key}/{name}": number for name, number in chunk_and_file(self._file).items()}
            columns[f"{key}/from_timestamp"] = before / self.features.fps
            columns[f"{key}/to_timestamp"] = (before + length) / self.features.fps
        return columns

    def _read_videos(self, lengths: Sequence[int]) -> dict[str, list[bytes]]:
        """Camera -> the newest video file, cut into its episodes."""
        parts = {}
        for camera in self._videos:
            path = self.directory / VIDEO_PATH.format(video_key=IMAGE_PREFIX + camera, **chunk_and_file(self._file))
            try:
                parts[camera] = cut_videos(path.read_bytes(), lengths)
            except (OSError, ValueError) as error:  # PyAV's errors are one or the other
                raise UserError(f"{path} is missing or damaged ({error}): copy or collect it again") from error
        return parts

    def _take(
        self,
        frames: pa.Table,
        statistics: Mapping[str, FeatureStatistics],
        videos: Mapping[str, bytes],
        buffer: bool = True,
    ) -> None:
        for key, part in statistics.items():
            self._statistics.setdefault(key, []).append(part)
        for key, blocks in self._vectors.items():
            blocks.append(vector_rows(frames[key]))
        if buffer:
            self._tables.append(frames)
            self._bytes += sum(encoded_bytes(frames[name]) for name in frames.column_names)
            for camera, video in videos.items():
                self._videos[camera].append(video)
                self._bytes += content_bytes(video)

    def _refuse_another(self, features: Features, provenance: Mapping[str, Any]) -> None:
        for name in sorted({*self.provenance, *provenance}):
            mine, theirs = self.provenance.get(name), provenance.get(name)
            if mine != theirs:
                raise UserError(
                    f"{self.directory} holds another data set ({name} {theirs!r}, expected {mine!r}):"
                    " choose another directory or the same settings"
                )
        difference = self.features.mismatch(features) or features.mismatch(self.features)
        if not difference and self.features.environment_names != features.environment_names:
            difference = f"environment_state is ({', '.join(features.environment_names)})"
        if difference:
            raise UserError(f"{self.directory} holds another data set ({difference}): choose another directory")

    def _write_video(self, videos: Sequence[bytes], path: Path) -> None:
        path.write_bytes(join_videos(videos, self.features.fps))

    def _write_data(self, path: Path) -> None:
        # PNG does not compress again, and min/max of image bytes would only bloat the footer.
        images = [field.name for field in self._schema if pa.types.is_struct(field.type)]
        plain = [f"{name}.{part}" for name in images for part in ("bytes", "path")]
        vectors = {key: len(names) for key, names in vector_names(self.features).items()}
        vectors |= {key: column.size for key, column in self._further.items()}
        leaves = [*(f"{key}.list.element" if size > 1 else key for key, size in vectors.items()), *SCALARS]
        how: dict[str, Any] = {
            "compression": {**dict.fromkeys(leaves, "SNAPPY"), **dict.fromkeys(plain, "NONE")},
            "use_dictionary": False,
            "write_statistics": list(SCALARS),
        }
        with pq.ParquetWriter(path, self._schema, **how) as writer:
            for table in self._tables:  # one row group per episode, as LeRobot writes: an episode is read alone
                writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)

    def _write_episodes(self, path: Path) -> None:
        table = pa.Table.from_pylist(self._rows, schema=episodes_schema(self._rows[0]))
        pq.write_table(table, path, use_dictionary=False)

    def _write_tasks(self, path: Path) -> None:
        pq.write_table(tasks_table(list(self._sentences)), path, use_dictionary=False)

    def _info(self) -> dict[str, Any]:
        totals = self.episodes, self.frames, len(self._sentences)
        return info_json(self.features, *totals, self.provenance, self.codec, self._further)
