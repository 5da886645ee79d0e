"""Gives a Parquet file the footer that its killed writer did not come to write: its pages are all there.

A Parquet file is row group after row group, of each all columns one after the other, of each its pages; every page has
a header that tells its size and how many values it holds. Only where columns begin and what they are called stands in
the footer. LeRobot's recorder writes one row group per episode and the footer at the very end, so a kill costs it
everything, but what was written can be found again by walking from page to page. Source: the Parquet format's
``parquet.thrift``, in Thrift's compact protocol.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
DICTIONARY_PAGE = 2
_TYPE, _BYTES, _STORED, _DATA, _DICTIONARY, _DATA2 = 1, 2, 3, 5, 7, 8  # fields of a page's header
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # kinds of the compact protocol
_SNAPPY = 1
_ENCODINGS = (0, 2, 3, 8)  # whichever of these the pages use: readers look at the pages


@dataclass(frozen=True)
class _Page:
    """Where a page lies: ``[begin, end)`` with its header; its values, and its size when it is not compressed."""

    begin: int
    end: int
    is_dictionary: bool
    values: int
    plain: int


@dataclass(frozen=True)
class _Leaf:
    """A column as Parquet sees it: ``per_row`` values in every row."""

    type: int
    path: tuple[bytes, ...]
    per_row: int


def with_footer(content: bytes, schema: pa.Schema) -> tuple[bytes, int]:
    """The complete row groups of a file whose end is missing, with a footer. Returns (the file, its rows).

    Args:
        content: what there is of the file; written with Snappy and dictionaries, pyarrow's default.
        schema: its columns, in order; no lists of varying length.
    """
    sizes = {field.name: getattr(field.type, "list_size", 1) for field in schema}
    template = _template(schema)
    leaves = [
        _Leaf(chunk[3][1], tuple(chunk[3][3]), sizes[chunk[3][3][0].decode()])
        for chunk in _struct(template, 0)[0][4][0][1]
    ]
    pages, groups, rows = _pages(content), [], 0
    while (group := _row_group(pages, leaves)) is not None:
        chunks, of_group, used = group
        groups.append((chunks, of_group))
        pages, rows = pages[used:], rows + of_group
    end = groups[-1][0][-1][-1].end if groups else len(MAGIC)
    footer = _footer(template, leaves, groups, rows)
    return content[:end] + footer + len(footer).to_bytes(4, "little") + MAGIC, rows


def _pages(content: bytes) -> list[_Page]:
    """All pages that are there to their end."""
    pages, at = [], len(MAGIC)
    while at < len(content):
        try:
            head, body = _struct(content, at)
            end = body + head[_STORED]
            told = head.get(_DATA) or head.get(_DATA2) or head[_DICTIONARY]
            is_dictionary, plain = head[_TYPE] == DICTIONARY_PAGE, head[_BYTES] + body - at
        except (IndexError, KeyError, TypeError, ValueError):
            break  # the header breaks off
        if end > len(content):
            break
        pages.append(_Page(at, end, is_dictionary, told[1], plain))
        at = end
    return pages


def _row_group(pages: Sequence[_Page], leaves: Sequence[_Leaf]) -> tuple[list[list[_Page]], int, int] | None:
    """The pages of every column of the next row group, its rows, and how many pages these are; None if it is cut."""
    used, rows, chunks = 0, 0, []
    for leaf in leaves:
        begin, values, wanted = used, 0, rows * leaf.per_row
        # How many rows there are tells the first column alone, which ends where the next one's dictionary begins.
        while used < len(pages) and (values < wanted if wanted else used == begin or not pages[used].is_dictionary):
            values += 0 if pages[used].is_dictionary else pages[used].values
            used += 1
        rows = rows or values // leaf.per_row
        if not values or values != rows * leaf.per_row:
            return None
        chunks.append(list(pages[begin:used]))
    return chunks, rows, used


def _template(schema: pa.Schema) -> bytes:
    """The footer of a file with these columns and one row."""
    file = io.BytesIO()
    empty = pa.table([pa.array([_any(field.type)], field.type) for field in schema], schema=schema)
    pq.write_table(empty, file)
    content = file.getvalue()
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


def _any(kind: pa.DataType) -> Any:
    if pa.types.is_fixed_size_list(kind):
        return [0] * kind.list_size  # type: ignore[attr-defined]
    return {"bytes": b"", "path": None} if pa.types.is_struct(kind) else 0 if not pa.types.is_boolean(kind) else False


def _footer(
    template: bytes, leaves: Sequence[_Leaf], groups: Sequence[tuple[list[list[_Page]], int]], rows: int
) -> bytes:
    """FileMetaData: version, schema and notes as in the template, rows and row groups as they are."""
    spans = _spans(template)
    written = []
    for chunks, of_group in groups:
        columns = [_column(chunk, leaf, of_group) for chunk, leaf in zip(chunks, leaves, strict=True)]
        size = sum(page.plain for chunk in chunks for page in chunk)
        written.append(
            _record({1: (_LIST, _list(_STRUCT, columns)), 2: (_I64, _number(size)), 3: (_I64, _number(of_group))})
        )
    fields = {number: (kind, template[begin:end]) for number, (kind, begin, end) in spans.items() if number != 7}
    return _record({**fields, 3: (_I64, _number(rows)), 4: (_LIST, _list(_STRUCT, written))})


def _column(chunk: Sequence[_Page], leaf: _Leaf, rows: int) -> bytes:
    first = next(page for page in chunk if not page.is_dictionary)
    meta = {
        1: (_I32, _number(leaf.type)),
        2: (_LIST, _list(_I32, [_number(each) for each in _ENCODINGS])),
        3: (_LIST, _list(_BINARY, [_varint(len(part)) + part for part in leaf.path])),
        4: (_I32, _number(_SNAPPY)),
        5: (_I64, _number(rows * leaf.per_row)),
        6: (_I64, _number(sum(page.plain for page in chunk))),
        7: (_I64, _number(chunk[-1].end - chunk[0].begin)),
        9: (_I64, _number(first.begin)),
    }
    if chunk[0].is_dictionary:
        meta[11] = _I64, _number(chunk[0].begin)
    return _record({2: (_I64, _number(0)), 3: (_STRUCT, _record(meta))})


def _struct(content: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct of the compact protocol: field number -> value; and where it ends."""
    found: dict[int, Any] = {}
    for number, kind, begin in _fields(content, at):
        if number == 0:
            return found, begin
        found[number], _ = _value(content, begin, kind)
    raise ValueError("no end")


def _spans(content: bytes) -> dict[int, tuple[int, int, int]]:
    """Field number -> kind, and ``[begin, end)`` of its value."""
    return {n: (kind, begin, _value(content, begin, kind)[1]) for n, kind, begin in _fields(content, 0) if n}


def _fields(content: bytes, at: int) -> Any:
    """(number, kind, where its value begins) of every field of a struct; at last (0, 0, where the struct ends)."""
    number = 0
    while True:
        head, at = content[at], at + 1
        if head == 0:
            yield 0, 0, at
            return
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(content, at)
        yield number, head & 15, at
        at = _value(content, at, head & 15)[1]


def _value(content: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return content[at], at + 1
    if kind in (4, _I32, _I64):
        return _zigzag(content, at)
    if kind == 7:
        return None, at + 8
    if kind == _BINARY:
        length, at = _unsigned(content, at)
        return content[at : at + length], at + length
    if kind == _LIST:
        head, at = content[at], at + 1
        count, of = head >> 4, head & 15
        if count == 15:
            count, at = _unsigned(content, at)
        values = []
        for _ in range(count):
            value, at = _value(content, at, of)
            values.append(value)
        return values, at
    if kind == _STRUCT:
        return _struct(content, at)
    raise ValueError(f"kind {kind}")


def _unsigned(content: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _zigzag(content: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(content, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number(value: int) -> bytes:
    return _varint(value << 1)  # none is negative


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _varint(len(items))
    return head + b"".join(items)


def _record(fields: Mapping[int, tuple[int, bytes]]) -> bytes:
    parts, last = [], 0
    for number in sorted(fields):
        kind, value = fields[number]
        parts.append(bytes([(number - last) << 4 | kind]) + value)
        last = number
    return b"".join(parts) + b"\0"
