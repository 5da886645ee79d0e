"""Writes and reads the videos of a data set with PyAV: one stream per file, frames found by their time.

Every second frame is a key frame and there are no B-frames, so any frame is at most one frame away from where a decoder
can start, and files are joined by copying packets.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from moe_robot.types import UserError

CODECS = {
    "h264": ("libx264", {"g": "2", "bf": "0", "crf": "18", "preset": "ultrafast"}),
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "10", "svtav1-params": "lp=1"}),
}
"""Codec -> encoder and its options. AV1 as LeRobot writes it, on one thread: collection has its own processes.

H.264 with x264's fastest preset: PitStop's frames as good (31.8 dB) as with `superfast`, in half the time,
a third larger.
"""
TOLERANCE = 0.25
"""A frame belongs to a time when it is not further away than this part of the time between two frames."""


@dataclass(frozen=True)
class Clip:
    """Where the frames of one episode and camera lie.

    Attributes:
        path: the video file.
        start: index in the data set of the episode's first frame.
        length: frames of the episode.
        time: of its first frame in the file, seconds.
        episode: its number, for messages.
    """

    path: Path
    start: int
    length: int
    time: float
    episode: int


class VideoEncoder:
    """Takes RGB frames of one size as they come and makes a video file of them, in memory."""

    def __init__(self, codec: str, height: int, width: int, fps: int) -> None:
        if height % 2 or width % 2:
            raise UserError(
                f"frames of {height}x{width} pixels cannot be stored as video: expected even numbers,"
                " choose another size or store images"
            )
        if codec == "av1":
            os.environ.setdefault("SVT_LOG", "1")  # otherwise thirty lines of log per episode
        encoder, options = CODECS[codec]
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        self._stream: Any = self._container.add_stream(encoder, rate=fps, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.thread_count = 1  # the same frames give the same bytes

    def add(self, frame: np.ndarray) -> None:
        """Append a uint8 RGB frame (H, W, 3)."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def finish(self) -> bytes:
        """The finished mp4 file."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()


def join_videos(videos: Sequence[bytes], fps: int) -> bytes:
    """One file that shows videos of the same encoder and size one after the other, packets copied as they are."""
    file, frames = io.BytesIO(), 0
    with av.open(file, "w", format="mp4") as joined:
        target: Any = None
        for video in videos:
            with av.open(io.BytesIO(video), "r") as part:
                source = part.streams.video[0]
                if target is None:
                    target = joined.add_stream_from_template(source, opaque=True)
                    target.time_base = source.time_base
                assert source.time_base is not None
                offset = round(frames / fps / source.time_base)
                for packet in part.demux(source):
                    if packet.dts is None or packet.pts is None:
                        continue  # the empty packet at the end
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = target
                    joined.mux(packet)
                    frames += 1
    return file.getvalue()


def content_bytes(video: bytes) -> int:
    """Bytes of the encoded frames alone: the same for a file and for what is cut out of one that it was joined into."""
    with av.open(io.BytesIO(video), "r") as file:
        return sum(packet.size for packet in file.demux(file.streams.video[0]))


def cut_videos(video: bytes, lengths: Sequence[int]) -> list[bytes]:
    """The inverse of :func:`join_videos`: a file of the first ``lengths[0]`` frames, one of the next, and so on."""
    parts: list[bytes] = []
    with av.open(io.BytesIO(video), "r") as whole:
        source = whole.streams.video[0]
        packets = [packet for packet in whole.demux(source) if packet.dts is not None and packet.pts is not None]
        if len(packets) < sum(lengths):
            raise ValueError(f"the video holds {len(packets)} frames, expected {sum(lengths)}")
        for length in lengths:
            mine, packets = packets[:length], packets[length:]
            file, offset = io.BytesIO(), min((packet.pts or 0 for packet in mine), default=0)
            with av.open(file, "w", format="mp4") as part:
                target: Any = part.add_stream_from_template(source, opaque=True)
                target.time_base = source.time_base
                for packet in mine:
                    packet.pts, packet.dts = (packet.pts or 0) - offset, (packet.dts or 0) - offset
                    packet.stream = target
                    part.mux(packet)
            parts.append(file.getvalue())
    return parts


def read_clips(clips: Sequence[Clip], fps: int, threads: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """Every frame of ``clips``, which all lie in one file, as (index in the data set, uint8 RGB (H, W, 3)).

    Raises:
        UserError: the file is missing or damaged, or has no frame at a time where an episode needs one.
    """
    wanted = sorted((clip.time + k / fps, clip.start + k, clip) for clip in clips for k in range(clip.length))
    path, at = clips[0].path, 0
    for time, frame in decode(path, threads):
        while at < len(wanted) and abs(wanted[at][0] - time) * fps <= TOLERANCE:
            yield wanted[at][1], frame
            at += 1
        if at == len(wanted):
            return
        if time > wanted[at][0]:
            break
    if at < len(wanted):
        raise missing_frame(wanted[at][2], wanted[at][0], wanted[at][1])


def missing_frame(clip: Clip, time: float, index: int) -> UserError:
    """The error for a video that does not hold what ``meta/episodes`` says."""
    return UserError(
        f"{clip.path} has no frame at {time:.3f} s: frame {index - clip.start} of the {clip.length} of episode"
        f" {clip.episode} is missing, copy or record the data set again"
    )


def decode(path: Path, threads: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """(time in seconds, uint8 RGB frame) of a whole file, in order of time.

    Raises:
        UserError: the file is missing or damaged.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = threads, "AUTO"
        to_rgb = VideoReformatter()
        try:
            for frame in container.decode(stream):
                yield frame_time(frame), rgb(to_rgb, frame)
        except FFmpegError as error:
            raise damaged(path, error) from error


def open_video(path: Path) -> Any:
    """The PyAV container of a file with a video stream.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        container: Any = av.open(str(path), "r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the data set is incomplete, copy or record it again") from None
    except (FFmpegError, OSError) as error:
        raise damaged(path, error) from error
    if not container.streams.video:
        raise UserError(f"{path} holds no video: copy or record the data set again")
    return container


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a video that cannot be decoded."""
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"{path} is damaged ({reason}): copy or record the data set again")


def frame_time(frame: Any) -> float:
    """When a decoded frame is shown, seconds from the file's beginning."""
    return float((frame.pts or 0) * frame.time_base)


def rgb(reformatter: VideoReformatter, frame: Any) -> np.ndarray:
    """A decoded frame as uint8 (H, W, 3). One reformatter for all frames: making one costs more than its use."""
    return reformatter.reformat(frame, format="rgb24").to_ndarray()
