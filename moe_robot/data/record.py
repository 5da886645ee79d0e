"""One finished episode: encoded frames, states, actions and what is known about it, on its way into a data set."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_robot.data.durable import write_atomically
from moe_robot.data.layout import EXTRAS, PNG, vector_names
from moe_robot.data.schema import IMAGE_TYPE, Columns, frame_columns
from moe_robot.data.statistics import ImageStatistics, from_columns, to_columns, vector_statistics
from moe_robot.data.video import CODECS, VideoEncoder
from moe_robot.registry import unknown
from moe_robot.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Features, FeatureStatistics, UserError

_VIDEO_COLUMN = "video."
"""Columns of a waiting episode's file whose first row holds a camera's video."""
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
"""Level 1 of 9: on 96 px frames 0.2 ms, against 3 ms at level 9 for files a quarter smaller."""
BATCH = 16
"""Frames that are encoded in one go: handing over costs as much as a tenth of a frame's encoding."""
AHEAD = 2
"""Batches that may wait for their encoding; whoever adds more waits too."""
_PICTURE_THREADS = 2
"""Encode pictures side by side: one makes 2,400 a second of 96 px, no more than there is to write."""


@dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode.

    Attributes:
        frames: N rows; encoded images (struct of bytes and path) and float32 vectors (state, action, and the
            environment's state where it is recorded), by feature key.
        sentence: the instruction.
        extras: values for the columns of :data:`moe_robot.data.layout.EXTRAS`; what is unknown is left out.
        statistics: per feature, cameras included.
        videos: camera -> the mp4 file of the episode, where cameras are stored as video.
    """

    frames: pa.Table
    sentence: str
    extras: Mapping[str, Any]
    statistics: Mapping[str, FeatureStatistics]
    videos: Mapping[str, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.frames.num_rows

    def save(self, path: Path) -> None:
        """Keep the episode in a file of its own until the data set takes it in; atomic and flushed to the disk."""
        head = {
            "sentence": self.sentence,
            "extras": dict(self.extras),
            "statistics": {key: to_columns(value, image=False) for key, value in self.statistics.items()},
        }
        table = self.frames
        for camera, video in self.videos.items():
            rows = pa.array([video, *[None] * (len(self) - 1)], pa.binary())
            table = table.append_column(_VIDEO_COLUMN + camera, rows)
        table = table.replace_schema_metadata({"episode": json.dumps(head)})
        write_atomically(
            path, lambda temporary: pq.write_table(table, temporary, compression="none", use_dictionary=False)
        )

    @classmethod
    def load(cls, path: Path) -> EpisodeRecord:
        """The inverse of :meth:`save`, bit for bit."""
        try:
            table = pq.ParquetFile(path).read()
            head = json.loads((table.schema.metadata or {})[b"episode"])
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, its episode will be collected again") from error
        statistics = {key: from_columns(value) for key, value in head["statistics"].items()}
        stored = [name for name in table.column_names if name.startswith(_VIDEO_COLUMN)]
        videos = {name.removeprefix(_VIDEO_COLUMN): table[name][0].as_py() for name in stored}
        frames = table.drop_columns(stored).replace_schema_metadata(None)
        return cls(frames, head["sentence"], head["extras"], statistics, videos)


class EpisodeBuilder:
    """Takes frames as they come and makes an :class:`EpisodeRecord` of them.

    Frames are encoded as they come, in threads beside the caller's: a long episode never lies in memory uncompressed,
    and the caller may reuse its buffers.
    """

    def __init__(self, features: Features, codec: str = PNG, further: Columns | None = None) -> None:
        """Frames are kept as ``codec``: "png", or "h264" or "av1" for a video per camera (with its small losses).

        ``further`` are the columns that :meth:`finish` will be given beside the features.
        """
        self._features, self._codec, self._further = features, codec, further or {}
        if codec != PNG and codec not in CODECS:
            raise unknown("image codec", codec, (PNG, *CODECS))
        sizes = features.cameras.items() if codec != PNG else ()
        self._videos = {camera: VideoEncoder(codec, *size, features.fps) for camera, size in sizes}
        self._images: dict[str, list[bytes]] = {camera: [] for camera in features.cameras}
        self._image_statistics = {camera: ImageStatistics() for camera in features.cameras}
        self._vectors: dict[str, list[np.ndarray]] = {key: [] for key in vector_names(features)}
        threads = 1 if self._videos else _PICTURE_THREADS  # the frames of a video have an order
        self._encoder = ThreadPoolExecutor(threads, "encode")
        self._counting = threading.Lock()
        self._batch: list[dict[str, np.ndarray]] = []
        self._waiting: deque[Future[dict[str, list[bytes]]]] = deque()

    def add(
        self,
        images: Mapping[str, np.ndarray],
        state: np.ndarray,
        action: np.ndarray,
        environment_state: np.ndarray | None = None,
    ) -> None:
        """Append one frame: uint8 images (H, W, 3) RGB per camera, state (S,), action (A,).

        ``environment_state`` is needed when the features have ``environment_names``, and left alone when not.

        Raises:
            UserError: a camera is missing, a shape is not that of the features, or a value is not finite.
        """
        at = len(self)
        for camera, (height, width) in self._features.cameras.items():
            image = images.get(camera)
            if image is None:
                raise UserError(f"frame {at} has no image of camera {camera!r}: it has {', '.join(images) or 'none'}")
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                raise UserError(
                    f"frame {at}: camera {camera!r} gave {image.dtype} {image.shape},"
                    f" expected uint8 {(height, width, 3)}"
                )
        given = {STATE: state, ACTION: action, ENVIRONMENT_STATE: environment_state}
        checked: dict[str, np.ndarray] = {}
        for key, names in vector_names(self._features).items():
            row = np.array(given[key], dtype=np.float32)
            if row.shape != (len(names),):
                raise UserError(f"frame {at}: {key} has shape {row.shape}, expected ({len(names)},)")
            if not np.isfinite(row).all():
                bad = names[int(np.flatnonzero(~np.isfinite(row))[0])]
                raise UserError(f"frame {at}: {key} entry {bad!r} is not finite: mend the environment or the sensor")
            checked[key] = row
        for key, row in checked.items():
            self._vectors[key].append(row)
        self._batch.append({camera: images[camera].copy() for camera in self._features.cameras})
        if len(self._batch) == BATCH:
            self._hand_over()
            self._take_encoded(AHEAD)

    def _hand_over(self) -> None:
        self._waiting.append(self._encoder.submit(self._encode, self._batch))
        self._batch = []

    def _encode(self, frames: Sequence[Mapping[str, np.ndarray]]) -> dict[str, list[bytes]]:
        """Pictures, by camera; none of cameras that are stored as video."""
        encoded: dict[str, list[bytes]] = {}
        for camera in self._features.cameras:
            of_camera = [frame[camera] for frame in frames]
            if camera in self._videos:
                for image in of_camera:
                    self._videos[camera].add(image)
            else:
                encoded[camera] = [encode_image(image) for image in of_camera]
            with self._counting:
                self._image_statistics[camera].add(of_camera)
        return encoded

    def _take_encoded(self, ahead: int) -> None:
        """Wait until no more than ``ahead`` batches are left to encode."""
        while len(self._waiting) > ahead:
            for camera, pictures in self._waiting.popleft().result().items():
                self._images[camera] += pictures

    def __len__(self) -> int:
        return len(self._vectors[ACTION])

    def finish(
        self,
        sentence: str,
        extras: Mapping[str, Any] | None = None,
        further: Mapping[str, np.ndarray] | None = None,
    ) -> EpisodeRecord:
        """The episode of all frames added so far, of which there must be at least one.

        Args:
            sentence: the instruction.
            extras: what is known of the episode, for :data:`moe_robot.data.layout.EXTRAS`.
            further: (N,) or (N, size) per further column.
        """
        extras, further = dict(extras or {}), dict(further or {})
        unknown = set(extras) - set(EXTRAS)
        if unknown or not len(self):
            raise ValueError(f"unknown extras {sorted(unknown)}" if unknown else "an episode needs at least one frame")
        if further.keys() != self._further.keys():
            raise ValueError(f"the columns {list(further)} are given, {list(self._further)} were announced")
        self._hand_over()
        self._take_encoded(0)
        self._encoder.shutdown()
        vectors = {key: np.stack(rows) for key, rows in self._vectors.items()}
        statistics = {IMAGE_PREFIX + camera: s.statistics() for camera, s in self._image_statistics.items()}
        statistics |= {key: vector_statistics(rows) for key, rows in vectors.items()}
        columns: dict[str, pa.Array] = {
            IMAGE_PREFIX + camera: pa.StructArray.from_arrays(
                [pa.array(encoded, pa.binary()), pa.nulls(len(encoded), pa.string())], fields=list(IMAGE_TYPE)
            )
            for camera, encoded in self._images.items()
            if camera not in self._videos
        }
        types = frame_columns(self._features, self._codec, self._further)
        for key, given in further.items():
            vectors[key] = np.asarray(given, self._further[key].dtype).reshape(len(self), self._further[key].size)
            statistics[key] = vector_statistics(vectors[key])
        for key, rows in vectors.items():
            flat = pa.array(rows.ravel())
            columns[key] = flat if rows.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, type=types[key])
        videos = {camera: encoder.finish() for camera, encoder in self._videos.items()}
        return EpisodeRecord(pa.table(columns), sentence, extras, statistics, videos)


def encode_image(image: np.ndarray) -> bytes:
    """A uint8 RGB image (H, W, 3) as PNG, without loss."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _PNG)[1].tobytes()
