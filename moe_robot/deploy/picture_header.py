"""Reads the size of a JPEG or PNG from its header, before anything is decoded: a few bytes can claim gigapixels."""

from __future__ import annotations

import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # of these, C4 and CC are tables, and C8 is reserved
JPEG_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
"""Segments that may come before the frame. Any other marker is refused: the decoder would go on to look elsewhere than
this reader does, and could find another size there."""
MAX_SEGMENTS = 256


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the header states, or None when it is neither a JPEG nor a PNG of 8 bits per sample."""
    if data.startswith(PNG_SIGNATURE):
        return _png_size(data)
    return _jpeg_size(data) if data.startswith(JPEG_START) else None


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 26 or data[12:16] != b"IHDR":  # always the first chunk
        return None
    width, height, depth = struct.unpack(">IIB", data[16:25])
    return (height, width) if depth <= 8 else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walks over the segments up to the frame header (ITU T.81, annex B)."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in JPEG_FRAMES:
            depth, height, width = struct.unpack(">BHH", data[at + 4 : at + 9])
            return (height, width) if depth == 8 and height and width else None
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in JPEG_TABLES:
            (length,) = struct.unpack(">H", data[at + 2 : at + 4])
            at += 2 + length
        else:
            return None
    return None
