"""robomimic's HDF5 files: names inside them, and how one is read, demonstration by demonstration.

``data/demo_<i>`` holds ``actions``, ``obs/<key>`` and, where they are known, ``rewards``, ``dones``, ``states`` (the
simulator's); its attribute ``num_samples`` is the length. ``data`` has attributes ``total`` and ``env_args`` (JSON),
``mask/<name>`` lists the demonstrations of a subset. Pictures are ``obs`` of uint8 (N, H, W, 3), by custom called
``<camera>_image`` (LIBERO's ``<camera>_rgb``). Source: robomimic's documentation, "Dataset contents".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.data.schema import Column
from moe_robot.registry import unknown
from moe_robot.types import UserError

SUFFIXES = (".hdf5", ".h5")
CAMERA_SUFFIXES = ("_image", "_rgb")
OBJECT = "object"
"""The low-dimensional key under which robosuite tells where things are: privileged, so it is no part of the state."""
REWARD, DONE, STATES = "next.reward", "next.done", "states"
KEPT = {"rewards": REWARD, "dones": DONE, "states": STATES}
"""Datasets of a demonstration -> the columns in which they are kept; the first two are LeRobot's names."""
SENTENCE, TASK, SEED = "task", "env_task", "seed"
"""Attributes of a demonstration, ours."""
NAMES = "names"
"""Attribute of ``obs/<key>`` and ``actions``, ours: JSON, what the entries are called."""


def hdf5() -> Any:
    """The package h5py.

    Raises:
        UserError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("robomimic's files need h5py: pip install 'moe-robot[robomimic]'") from error
    return h5py


def is_hdf5(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Contents:
    """What a file says of all its demonstrations.

    Attributes:
        demos: their names, ``demo_2`` before ``demo_10``.
        cameras: camera -> its key in ``obs``, and its (height, width).
        low_dim: low-dimensional key of ``obs`` -> the names of its entries.
        actions: the names of the action's entries.
        kept: column -> its form, for what else is there of :data:`KEPT`.
        env_args: as the file has it; empty where it says nothing.
        masks: name -> places in ``demos``.
        sentence: the instruction that is said once for the whole file (LIBERO), else None.
    """

    demos: tuple[str, ...]
    cameras: Mapping[str, tuple[str, tuple[int, int]]]
    low_dim: Mapping[str, tuple[str, ...]]
    actions: tuple[str, ...]
    kept: Mapping[str, Column]
    env_args: Mapping[str, Any]
    masks: Mapping[str, tuple[int, ...]]
    sentence: str | None


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The open file.

    Raises:
        UserError: there is none, it is truncated or no HDF5, or it breaks off while it is read.
    """
    h5py = hdf5()
    if not path.is_file():
        raise UserError(f"{path} is missing: expected a robomimic file (.hdf5)")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({_first_line(error)}): copy or write it again") from error
    with file:
        yield file


def read_contents(path: Path, file: Any) -> Contents:
    """What the first demonstration and the file's attributes say.

    Raises:
        UserError: it is not robomimic's layout, has no demonstration or none with observations.
    """
    data = file.get("data")
    if data is None:
        raise UserError(f"{path} has no group 'data' (but {', '.join(file) or 'nothing'}): expected robomimic's layout")
    demos = sorted((name for name in data if name.startswith("demo")), key=_number)
    if not demos:
        raise UserError(f"{path} holds no demonstration: expected groups data/demo_0, data/demo_1, ...")
    first = data[demos[0]]
    if "actions" not in first or "obs" not in first:
        raise UserError(
            f"{path}, {demos[0]}: expected 'actions' and 'obs', it has {', '.join(first)};"
            " robomimic's dataset_states_to_obs.py makes observations"
        )
    cameras, low_dim = {}, {}
    for key, values in first["obs"].items():
        if values.ndim == 4 and values.shape[3] == 3 and values.dtype == np.uint8:
            cameras[camera_of(key)] = key, (int(values.shape[1]), int(values.shape[2]))
        elif values.ndim in (1, 2) and np.issubdtype(values.dtype, np.number):
            low_dim[key] = _names(values, key)
    kept = {}
    for name, column in KEPT.items():
        if name in first:
            size = 1 if first[name].ndim == 1 else int(first[name].shape[1])
            kept[column] = Column("bool" if name == "dones" else "float64", size)
    place = {name: i for i, name in enumerate(demos)}
    masks = {}
    for name in file.get("mask", {}):
        listed = [demo.decode() if isinstance(demo, bytes) else str(demo) for demo in file["mask"][name][()]]
        masks[name] = tuple(sorted(place[demo] for demo in listed if demo in place))
    env_args, problem = _json(data.attrs.get("env_args")), _json(data.attrs.get("problem_info"))
    return Contents(
        demos=tuple(demos),
        cameras=cameras,
        low_dim=low_dim,
        actions=_names(first["actions"], "action"),
        kept=kept,
        env_args=env_args,
        masks=masks,
        sentence=problem.get("language_instruction"),
    )


def camera_of(key: str) -> str:
    """``agentview_image`` -> ``agentview``."""
    suffix = next((suffix for suffix in CAMERA_SUFFIXES if key.endswith(suffix)), "")
    return key.removesuffix(suffix)


def checked(path: Path, demo: Any, name: str, keys: Sequence[str]) -> int:
    """The length of a demonstration all of whose ``keys`` have it.

    Raises:
        UserError: something is missing or shorter than the rest; a file that was being written looks so.
    """
    lengths = {}
    for key in ("actions", *keys):
        if key not in demo:
            raise UserError(f"{path}, {name}: {key} is missing, it is in the first demonstration: write the file again")
        lengths[key] = len(demo[key])
    stated = demo.attrs.get("num_samples", lengths["actions"])
    for key, length in lengths.items():
        if length != stated or length == 0:
            raise UserError(f"{path}, {name}: {key} has {length} frames, expected {stated}: write the file again")
    return int(stated)


def values_of(path: Path, demo: Any, name: str, key: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of one dataset of a demonstration.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return demo[key][rows]
    except OSError as error:
        raise UserError(f"{path}, {name}: {key} is damaged ({_first_line(error)}): copy the file again") from error


def chosen_low_dim(path: Path, contents: Contents, chosen: Sequence[str]) -> tuple[list[str], bool]:
    """The keys that make the state, in order, and whether ``object`` is kept as the environment's state.

    Raises:
        UserError: a key that is not there, or nothing is left.
    """
    for key in chosen:
        if key not in contents.low_dim:
            raise unknown(f"low-dimensional observation of {path}", key, contents.low_dim)
    keys = list(chosen) or [key for key in sorted(contents.low_dim) if key != OBJECT]
    if not keys:
        raise UserError(f"{path} has no low-dimensional observation: expected at least one in obs, for the state")
    return keys, OBJECT in contents.low_dim and OBJECT not in keys


def _number(name: str) -> tuple[int, str]:
    digits = name.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else -1, name)


def _names(values: Any, key: str) -> tuple[str, ...]:
    size = 1 if values.ndim == 1 else int(values.shape[1])
    try:
        told = json.loads(values.attrs[NAMES])
    except (KeyError, ValueError, TypeError):
        told = None
    if isinstance(told, list) and len(told) == size:
        return tuple(map(str, told))
    return tuple(f"{key}.{i}" for i in range(size)) if size > 1 else (key,)


def _json(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
