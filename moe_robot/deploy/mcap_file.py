"""Writes an MCAP file that is whole, with its index, after every flush: whatever ends the program, tools can open it.

The format is that of https://mcap.dev/spec (version 0): records of opcode, length and content, all little-endian.
A library would write the index once, in the end; here each flush puts its chunk where the index stood, and the index
anew behind it, in one write.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(1, 9)
STATISTICS, METADATA, METADATA_INDEX, DATA_END = 0x0B, 0x0C, 0x0D, 0x0F


class McapFile:
    """A new file of ROS 2 messages. For one thread."""

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        """Create it, whole and empty.

        Args:
            path: of a file that is not there yet.
            about: kept in the file under the name ``moe_robot``.

        Raises:
            OSError: it exists, or cannot be written.
        """
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._constant = b""  # schemas and channels, as they stand in the chunks and again in the index
        self._schemas: dict[str, int] = {}
        self._channels: dict[int, int] = {}  # channel -> how many messages
        self._chunk, self._chunk_indexes, self._chunks = bytearray(), b"", 0
        self._places: dict[int, list[tuple[int, int]]] = {}  # channel -> (time, place in the chunk) of its messages
        self._span: tuple[int, int] | None = None
        start = MAGIC + _record(HEADER, _text("ros2") + _text("moe_robot"))
        metadata = _record(METADATA, _text("moe_robot") + _sized(b"".join(map(_pair, about.items()))))
        self._metadata_index = _record(
            METADATA_INDEX, struct.pack("<QQ", len(start), len(metadata)) + _text("moe_robot")
        )
        self._end, self._tail = 0, b""  # where what is never written again ends, and the index behind it
        self._write(start + metadata)

    def add_channel(self, topic: str, kind: str, definition: str) -> int:
        """The number of a new channel, from 1 on.

        Args:
            topic: its name.
            kind: message type, for example ``std_msgs/msg/String``.
            definition: the type's text with those that it is made of, as ``ros2msg`` has it.
        """
        if kind not in self._schemas:
            self._schemas[kind] = len(self._schemas) + 1
            schema = struct.pack("<H", self._schemas[kind]) + _text(kind) + _text("ros2msg") + _text(definition)
            self._announce(_record(SCHEMA, schema))
        number = len(self._channels) + 1
        self._channels[number] = 0
        qos = _sized(_pair(("offered_qos_profiles", "")))
        channel = struct.pack("<HH", number, self._schemas[kind]) + _text(topic) + _text("cdr") + qos
        self._announce(_record(CHANNEL, channel))
        return number

    def add(self, channel: int, data: bytes, logged_ns: int, published_ns: int) -> None:
        """One message in CDR; it is in the file after the next :meth:`flush`."""
        self._places.setdefault(channel, []).append((logged_ns, len(self._chunk)))
        number = self._channels[channel]
        self._channels[channel] += 1
        self._chunk += _record(MESSAGE, struct.pack("<HIQQ", channel, number, logged_ns, published_ns) + data)

    def flush(self) -> None:
        """Write what was added since the last time.

        Raises:
            OSError: the disk is full, or gone. The file stays as it was after the flush before; add no more to it.
        """
        if not self._places:
            return
        times = [time for places in self._places.values() for time, _ in places]
        first, last = min(times), max(times)
        self._span = (first, last) if self._span is None else (min(first, self._span[0]), max(last, self._span[1]))
        content, size = bytes(self._chunk), len(self._chunk)
        head = struct.pack("<QQQI", first, last, size, zlib.crc32(content)) + _text("")
        chunk = _record(CHUNK, head + struct.pack("<Q", size) + content)
        indexes, offsets = b"", b""
        for channel, places in self._places.items():
            offsets += struct.pack("<HQ", channel, self._end + len(chunk) + len(indexes))
            entries = b"".join(struct.pack("<QQ", *place) for place in places)
            indexes += _record(MESSAGE_INDEX, struct.pack("<H", channel) + _sized(entries))
        index = struct.pack("<QQQQ", first, last, self._end, len(chunk)) + _sized(offsets)
        index += struct.pack("<Q", len(indexes)) + _text("") + struct.pack("<QQ", size, size)
        self._chunk_indexes += _record(CHUNK_INDEX, index)
        self._chunks += 1
        self._chunk, self._places = bytearray(), {}
        self._write(chunk + indexes)

    def close(self) -> None:
        """Flush, and let go of the file."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def messages(self) -> int:
        """How many were added."""
        return sum(self._channels.values())

    def _announce(self, record: bytes) -> None:
        self._constant += record
        self._chunk += record

    def _write(self, lasting: bytes) -> None:
        """Put this in the place of the index, and the index behind it."""
        tail = self._index(self._end + len(lasting))
        try:
            self._put(lasting + tail)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            self._put(self._tail)  # there was room for it before
            raise
        self._end, self._tail = self._end + len(lasting), tail

    def _put(self, data: bytes) -> None:
        at = self._end
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data, at = data[written:], at + written

    def _index(self, at: int) -> bytes:
        """All that ends a file, for the place ``at``."""
        first, last = self._span or (0, 0)
        counts = b"".join(struct.pack("<HQ", *count) for count in self._channels.items())
        numbers = (self.messages, len(self._schemas), len(self._channels), 0, 1, self._chunks, first, last)
        statistics = _record(STATISTICS, struct.pack("<QHIIIIQQ", *numbers) + _sized(counts))
        data_end = _record(DATA_END, struct.pack("<I", 0))
        summary = self._constant + statistics + self._chunk_indexes + self._metadata_index
        footer = _record(FOOTER, struct.pack("<QQI", at + len(data_end), 0, 0))
        return data_end + summary + footer + MAGIC


def _record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def _sized(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _text(text: str) -> bytes:
    return _sized(text.encode())


def _pair(pair: tuple[str, str]) -> bytes:
    return _text(pair[0]) + _text(pair[1])
