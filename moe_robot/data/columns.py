"""Columns of the Parquet files: their types in ``meta/episodes``, and vectors as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moe_robot.data.layout import EXTRAS, SCALARS
from moe_robot.data.statistics import QUANTILES
from moe_robot.types import IMAGE_PREFIX

STATISTICS: Sequence[str] = ("min", "max", "mean", "std", "count", *QUANTILES)


def episodes_schema(row: Mapping[str, Any]) -> pa.Schema:
    """The columns of ``meta/episodes`` for rows with the keys of ``row``."""
    fields = []
    for name in row:
        if name == "tasks":
            kind: pa.DataType = pa.list_(pa.field("element", pa.string()))
        elif name in EXTRAS:
            kind = EXTRAS[name]
        elif name.startswith("stats/"):
            _, key, which = name.split("/")
            counted = SCALARS.get(key) == pa.int64() and which in ("min", "max")
            kind = pa.int64() if counted or which == "count" else pa.float64()
            depth = 3 if key.startswith(IMAGE_PREFIX) and which != "count" else 1
            for _ in range(depth):
                kind = pa.list_(pa.field("element", kind))
        else:
            kind = pa.float64() if name.endswith("_timestamp") else pa.int64()
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def vector_rows(column: pa.ChunkedArray) -> np.ndarray:
    """A float32 array (N, D) of a column of vectors of one size; plain numbers are vectors of one entry."""
    return rows_as_stored(column).astype(np.float32, copy=False)


def rows_as_stored(column: pa.ChunkedArray) -> np.ndarray:
    """As :func:`vector_rows`, of the type that the column has."""
    if len(column) == 0:
        raise ValueError("no rows")
    nested = pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)
    flat = (pc.call_function("list_flatten", [column]) if nested else column).to_numpy()
    return np.asarray(flat).reshape(len(column), -1)


def encoded_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of content, whatever buffers hold it: it decides where a file ends and must not depend on history."""
    if pa.types.is_struct(column.type):
        lengths = (pc.call_function("binary_length", [chunk.field("bytes")]) for chunk in column.chunks)
        return sum(int(length.to_numpy().sum()) for length in lengths)
    if pa.types.is_fixed_size_list(column.type):
        return len(column) * column.type.list_size * 4
    return len(column) * 8
