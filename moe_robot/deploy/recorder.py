"""The process that writes a recording: pictures, states, actions and decisions come over a pipe and go to the file."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from moe_robot.deploy import cdr
from moe_robot.deploy.codecs import BadMessage, data_of, raw_picture
from moe_robot.deploy.mcap_file import McapFile
from moe_robot.deploy.recorded import COMPRESSED, RAW

FLUSH_S = 0.5
"""A process that is killed loses no more than this."""
JPEG_QUALITY = 95
"""Of pictures that the robot sends raw."""


def serve(pipe: Connection, path: Path, about: Mapping[str, str]) -> None:
    """Write lists of (topic, kind, message, nanoseconds) until a None or the end of the pipe, then close the file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when it is over
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _Recording(McapFile(path, about))
    except OSError as error:
        pipe.send(("failed", f"cannot be written ({error.strerror})"))
        return
    try:
        pipe.send(("ready", None))
        file.follow(pipe)
        file.close()
        pipe.send(("done", (file.messages, file.refused)))
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # else nobody listens any more
            pipe.send(("failed", f"it cannot be written any more ({error.strerror})"))
    finally:
        file.close()


class _Recording:
    def __init__(self, file: McapFile) -> None:
        self._file, self._writer = file, cdr.Writer()
        self._channels: dict[str, int] = {}
        self.refused = 0

    @property
    def messages(self) -> int:
        return self._file.messages

    def follow(self, pipe: Connection) -> None:
        due = time.monotonic() + FLUSH_S
        while True:
            if pipe.poll(max(due - time.monotonic(), 0.0)):
                try:
                    entries = pipe.recv()
                except (EOFError, ConnectionResetError):  # the parent was killed
                    return
                if entries is None:
                    return
                for entry in entries:
                    self._add(*entry)
            if time.monotonic() >= due:
                self._file.flush()
                due = time.monotonic() + FLUSH_S

    def close(self) -> None:
        self._file.close()

    def _add(self, topic: str, kind: str, message: Mapping[str, Any], logged_ns: int) -> None:
        try:
            if kind == RAW:
                kind, message = COMPRESSED, _as_jpeg(message)
            elif kind == COMPRESSED:
                message = {**message, "data": data_of(message)}
            data = self._writer.cdr(message, kind)
        except ValueError:  # what a stranger sent may be anything
            self.refused += 1
            return
        if topic not in self._channels:
            self._channels[topic] = self._file.add_channel(topic, kind, self._writer.definition(kind))
        self._file.add(self._channels[topic], data, logged_ns, logged_ns)


def _as_jpeg(message: Mapping[str, Any]) -> dict[str, Any]:
    """A CompressedImage of an Image message."""
    pixels = raw_picture(message)
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise BadMessage("it cannot be encoded")
    return {"header": message.get("header"), "format": "rgb8; jpeg compressed bgr8", "data": data.tobytes()}
