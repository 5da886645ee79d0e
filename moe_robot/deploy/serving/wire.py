"""The frames of the policy server: msgpack with numpy arrays as openpi's client writes them, read with strict caps.

An array is a map with the bytes keys ``__ndarray__`` (true), ``data`` (its bytes in C order), ``dtype``
(``numpy.dtype.str``) and ``shape``; a numpy scalar one with ``__npgeneric__``, ``data`` and ``dtype``. Nothing is ever
unpickled, and only plain numbers and truth values are arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
DTYPES = frozenset({"|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"})
"""What an array may be made of; anything else is refused by name."""


class WireError(ValueError):
    """A frame that is not what it should be; one line."""


@dataclass(frozen=True)
class Caps:
    """What a frame may hold at most.

    Attributes:
        bytes: of the whole frame.
        items: entries of all maps and lists together; arrays count as one.
        depth: of maps and lists in each other; a map of arrays has depth 1.
        text: characters of one string.
        dimensions: of an array.
    """

    bytes: int = 4 * 2**20
    items: int = 4096
    depth: int = 3
    text: int = 4096
    dimensions: int = 5


TRUSTED = Caps(bytes=2**31 - 1, items=10**6, depth=6, text=10**6)
"""Between processes of our own."""


def pack(content: Any) -> bytes:
    """A frame of maps with string keys, lists, strings, numbers and numpy arrays or scalars.

    Raises:
        WireError: an array of objects, records, strings or complex numbers.
    """
    return bytes(msgpack.packb(content, default=_plain) or b"")


def unpack(frame: bytes, caps: Caps = Caps()) -> Any:
    """What :func:`pack` was given. Arrays are read-only views of the frame.

    Raises:
        WireError: it is no such frame, or exceeds the caps.
    """
    if len(frame) > caps.bytes:
        raise WireError(f"the frame has {len(frame)} bytes, expected at most {caps.bytes}")
    count = _counter(caps)

    def keep_list(items: list[Any]) -> list[Any]:
        count(items)
        return items

    def keep_map(entries: dict[Any, Any]) -> Any:
        count(entries)
        return _array_or_map(entries)

    try:
        content = msgpack.unpackb(
            frame, object_hook=keep_map, list_hook=keep_list, strict_map_key=True, raw=False,
            max_str_len=4 * caps.text, max_bin_len=caps.bytes, max_array_len=caps.items, max_map_len=caps.items,
            max_ext_len=0,
        )  # fmt: skip
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise WireError(f"the frame is no msgpack of maps, strings, numbers and arrays ({reason})") from None
    _check(content, caps, caps.depth)
    return content


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f"a {type(value).__name__} cannot be sent: expected arrays, numbers, strings, lists and maps")
    dtype = value.dtype.newbyteorder("<") if value.dtype.byteorder == ">" else value.dtype
    if dtype.str not in DTYPES:
        raise WireError(f"an array of {value.dtype} cannot be sent: expected plain numbers or truth values")
    if isinstance(value, np.ndarray):
        return {ARRAY: True, DATA: value.astype(dtype, copy=False).tobytes(), DTYPE: dtype.str, SHAPE: value.shape}
    return {SCALAR: True, DATA: value.item(), DTYPE: dtype.str}


def _counter(caps: Caps) -> Callable[[Collection[Any]], None]:
    """Ends the decoding of a frame that is made of very many small lists and maps, before they fill the memory."""
    left = caps.items

    def count(items: Collection[Any]) -> None:
        nonlocal left
        left -= 1 + len(items)
        if left < 0:
            raise WireError(f"the frame holds over {caps.items} items")

    return count


def _array_or_map(entries: dict[Any, Any]) -> Any:
    if ARRAY in entries:
        return _array(entries)
    if SCALAR in entries:
        return _scalar(entries)
    for key in entries:
        if not isinstance(key, str):
            raise WireError(f"a map has the key {key!r:.40}, expected a string")
    return entries


def _array(entries: Mapping[Any, Any]) -> np.ndarray:
    if set(entries) != {ARRAY, DATA, DTYPE, SHAPE}:
        raise WireError("an array is written as a map of __ndarray__, data, dtype and shape, and nothing else")
    data, shape, dtype = entries[DATA], entries[SHAPE], _dtype(entries[DTYPE])
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > Caps.dimensions:
        raise WireError(f"an array has the shape {shape!r:.60}, expected up to {Caps.dimensions} whole numbers")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        there = len(data) if isinstance(data, bytes) else type(data).__name__
        raise WireError(
            f"an array of {dtype} {tuple(shape)} has {there} bytes, not {math.prod(shape) * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(entries: Mapping[Any, Any]) -> np.generic:
    if set(entries) != {SCALAR, DATA, DTYPE} or not isinstance(entries[DATA], bool | int | float):
        raise WireError("a scalar is written as a map of __npgeneric__, data (a number) and dtype, and nothing else")
    try:
        with np.errstate(over="raise"):
            return _dtype(entries[DTYPE]).type(entries[DATA])
    except (ArithmeticError, ValueError) as error:
        raise WireError(f"a scalar does not fit its type: {error}") from None


def _dtype(name: Any) -> np.dtype:
    if name not in DTYPES:
        raise WireError(f"an array is of {name!r:.40}, expected one of {', '.join(sorted(DTYPES))}")
    return np.dtype(name)


def _check(content: Any, caps: Caps, depth: int) -> None:
    """Nothing if ``content`` is no deeper or stranger than it may be."""
    if isinstance(content, dict | list):
        if not depth:
            raise WireError(f"the frame holds more than {caps.depth} maps and lists in each other")
        for item in [*content, *content.values()] if isinstance(content, dict) else content:
            _check(item, caps, depth - 1)
    elif isinstance(content, str) and len(content) > caps.text:
        raise WireError(f"a string has {len(content)} characters, expected at most {caps.text}")
    elif isinstance(content, bytes):
        raise WireError("raw bytes stand outside an array")
    elif content is not None and not isinstance(content, str | bool | int | float | np.ndarray | np.generic):
        raise WireError(f"a {type(content).__name__} stands in the frame")  # msgpack's time stamps
