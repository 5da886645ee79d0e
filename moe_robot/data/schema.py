"""What is written into a data set of LeRobot's layout v3.0: column types, the content of the meta files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from moe_robot.data.layout import (
    CODEBASE_VERSION,
    DATA_PATH,
    FILES_PER_CHUNK,
    PNG,
    PROVENANCE,
    SCALARS,
    VIDEO_PATH,
    vector_names,
)
from moe_robot.types import IMAGE_PREFIX, Features

_IMAGE_AXES = ("height", "width", "channels")
IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_KINDS = {"float32": pa.float32(), "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}


@dataclass(frozen=True)
class Column:
    """A column beside the features, which nothing here learns from: kept for those who know it (rewards and the like).

    Attributes:
        dtype: of its numbers.
        size: how many a frame has.
    """

    dtype: Literal["float32", "float64", "int64", "bool"]
    size: int = 1

    @property
    def type(self) -> pa.DataType:
        """As it is stored. One number is a plain column, in LeRobot's files too."""
        return pa.list_(pa.field("element", _KINDS[self.dtype]), self.size) if self.size != 1 else _KINDS[self.dtype]


Columns = Mapping[str, Column]
"""Further columns by name."""


def vector_type(size: int) -> pa.DataType:
    """A float32 vector column, fixed size; the child's name is the one that Parquet gives back when it is read.

    A vector of one entry is a plain number in LeRobot's files.
    """
    return pa.list_(pa.field("element", pa.float32()), size) if size != 1 else pa.float32()


def frame_columns(features: Features, codec: str = PNG, further: Columns | None = None) -> dict[str, pa.DataType]:
    """What one frame carries of its own in the data files: images, unless they are in videos, vectors, and the rest."""
    return {
        **({IMAGE_PREFIX + camera: IMAGE_TYPE for camera in features.cameras} if codec == PNG else {}),
        **{key: vector_type(len(names)) for key, names in vector_names(features).items()},
        **{key: column.type for key, column in (further or {}).items()},
    }


def data_schema(features: Features, codec: str = PNG, further: Columns | None = None) -> pa.Schema:
    """Columns of a data file, with the note by which Hugging Face ``datasets`` decodes images and vectors."""
    columns = {**frame_columns(features, codec, further), **SCALARS}
    notes: dict[str, Any] = {}
    for name, kind in columns.items():
        if kind == IMAGE_TYPE:
            notes[name] = {"_type": "Image"}
        elif pa.types.is_fixed_size_list(kind):
            notes[name] = {
                "feature": {"dtype": _dtype(kind.value_type), "_type": "Value"},  # type: ignore[attr-defined]
                "length": kind.list_size,  # type: ignore[attr-defined]
                "_type": "List",
            }
        else:
            notes[name] = {"dtype": _dtype(kind), "_type": "Value"}
    note = json.dumps({"info": {"features": notes}})
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()], metadata={"huggingface": note})


def _dtype(kind: pa.DataType) -> str:
    return next(name for name, known in _KINDS.items() if known == kind)


def info_json(
    features: Features,
    episodes: int,
    frames: int,
    tasks: int,
    provenance: Mapping[str, Any],
    codec: str = PNG,
    further: Columns | None = None,
) -> dict:
    """The content of ``meta/info.json`` of a data set whose cameras are stored as PNG or as video of ``codec``."""
    described: dict[str, Any] = {}
    for camera, (h, w) in features.cameras.items():
        described[IMAGE_PREFIX + camera] = {"dtype": "image", "shape": [h, w, 3], "names": list(_IMAGE_AXES)}
        if codec != PNG:
            described[IMAGE_PREFIX + camera] |= {"dtype": "video", "info": _video_info(h, w, codec, features.fps)}
    for key, names in vector_names(features).items():
        described[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    for key, column in (further or {}).items():
        described[key] = {"dtype": column.dtype, "shape": [column.size], "names": None}
    for key, kind in SCALARS.items():
        described[key] = {"dtype": _dtype(kind), "shape": [1], "names": None}
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": None,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": features.fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": None if codec == PNG else VIDEO_PATH,
        "features": described,
        PROVENANCE: dict(provenance),
    }


def _video_info(height: int, width: int, codec: str, fps: int) -> dict[str, Any]:
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": codec,
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def tasks_table(sentences: Sequence[str]) -> pa.Table:
    """``meta/tasks.parquet``: the pandas frame that LeRobot reads, with the sentence as its index."""
    index = "__index_level_0__"
    pandas = {
        "index_columns": [index],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        ],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    schema = pa.schema([("task_index", pa.int64()), (index, pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table({"task_index": list(range(len(sentences))), index: list(sentences)}, schema=schema)
