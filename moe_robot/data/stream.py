"""Frames decoded when they are asked for, without a cache: for data larger than the disk has room for."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from moe_robot.data.frames import ImageRows, Source, decode_image, read_images
from moe_robot.data.layout import INFO
from moe_robot.data.video import TOLERANCE, Clip, damaged, frame_time, missing_frame, open_video, rgb
from moe_robot.types import UserError

OPEN_VIDEOS = 32
"""Files that are kept open per process and camera."""
KEPT_BYTES = 256 * 2**20
"""Encoded images that are kept in memory per process and camera. A row group is read whole, whichever frame is asked
for: where episodes have megabytes of images, video streams faster."""
_INHERITED: list[Any] = []
"""What a forked worker has of its parent and never uses. To free a decoder is to wait for its threads, which a fork
does not bring along: it would wait for ever."""


class StreamedFrames:
    """The frames of one camera, indexed by an array of frame numbers like a memory map of all of them."""

    def __init__(self, found: Sequence[Source], shape: tuple[int, ...], fps: int) -> None:
        self._shape, self._fps = shape, fps
        self._parts = sorted((part for source in found for part in source), key=lambda part: part.start)
        self._starts = [part.start for part in self._parts]
        self._forget()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (len(rows), H, W, 3), RGB.

        Raises:
            UserError: a frame is missing, does not decode or has another shape.
        """
        if self._process != os.getpid():  # a forked worker must not share file positions with its parent
            _INHERITED.append((self._groups, self._videos, self._to_rgb))
            self._forget()
        frames = np.empty((len(rows), *self._shape), dtype=np.uint8)
        for place in np.argsort(rows, kind="stable"):  # neighbours in a file are decoded one after the other
            row = int(rows[place])
            part = self._parts[bisect_right(self._starts, row) - 1]
            frame = self._image(part, row) if isinstance(part, ImageRows) else self._video_frame(part, row)
            if frame.shape != self._shape:
                raise UserError(
                    f"{part.path}, frame {row}: the image has shape {frame.shape}, {INFO} says {self._shape}"
                )
            frames[place] = frame
        return frames

    def __getstate__(self) -> dict[str, Any]:
        """A worker process opens the files anew."""
        return {name: self.__dict__[name] for name in ("_shape", "_fps", "_parts", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._groups = _Kept(KEPT_BYTES, cost=lambda encoded: encoded.nbytes)
        self._videos = _Kept(OPEN_VIDEOS, drop=lambda container: container.close())
        self._to_rgb = VideoReformatter()

    def _image(self, part: ImageRows, row: int) -> np.ndarray:
        encoded = self._groups.get(part, lambda: read_images(part))
        return decode_image(part, row - part.start, encoded[row - part.start])

    def _video_frame(self, clip: Clip, row: int) -> np.ndarray:
        container = self._videos.get(clip.path, lambda: _opened(clip.path))
        stream, time = container.streams.video[0], clip.time + (row - clip.start) / self._fps
        try:
            container.seek(round(time / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                late = (frame_time(frame) - time) * self._fps
                if abs(late) <= TOLERANCE:
                    return rgb(self._to_rgb, frame)
                if late > 0:
                    break
        except FFmpegError as error:
            raise damaged(clip.path, error) from error
        raise missing_frame(clip, time, row)


def _opened(path: Path) -> Any:
    container = open_video(path)
    container.streams.video[0].thread_count = 1  # frame threads would have to be filled anew after every seek
    return container


class _Kept:
    """Values by key, as many as fit into ``room``; the ones that were unused for longest go."""

    def __init__(
        self, room: int, cost: Callable[[Any], int] = lambda _: 1, drop: Callable[[Any], None] = lambda _: None
    ) -> None:
        self._room, self._cost, self._drop = room, cost, drop
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._used = 0

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of ``key``, made at need."""
        if key not in self._values:
            self._values[key] = make()
            self._used += self._cost(self._values[key])
            while self._used > self._room and len(self._values) > 1:
                old = self._values.popitem(last=False)[1]
                self._used -= self._cost(old)
                self._drop(old)
        self._values.move_to_end(key)
        return self._values[key]
