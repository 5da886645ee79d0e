"""From a data set, or a mixture of several, to a robomimic file: every episode a demonstration."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.data.cache import cache_bytes
from moe_robot.data.durable import disk_errors, write_atomically
from moe_robot.data.episodes import held_out
from moe_robot.data.loader import Dataset
from moe_robot.data.mixture import Mixture
from moe_robot.data.robomimic import KEPT, NAMES, OBJECT, SEED, SENTENCE, TASK, hdf5
from moe_robot.types import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, UserError

KEEP = "the demonstrations are as they were"
BLOCK = 64
"""Frames that are written at once."""
Progress = Callable[[int, int], None]
"""Told (episodes done, episodes in all)."""


def to_robomimic(
    dataset: Dataset | Mixture, out: Path, progress: Progress = lambda done, total: None
) -> tuple[int, int]:
    """Write the opened episodes. Returns (demonstrations, frames).

    The file gets its name when it is complete: a kill leaves none, only ``OUT.tmp``, which the next call replaces.
    State entries called ``<key>.0``, ``<key>.1``, ... become ``obs/<key>``, all others together ``obs/state``.
    Rewards and dones are those that were recorded; where none were, only the last step is done, and rewarded unless the
    episode is known to have failed. ``mask/train`` and ``mask/valid`` are those that the data came with, otherwise what
    training here learns from and holds out.

    Raises:
        UserError: ``out`` is there already, the data set is damaged, or the disk is full.
    """
    if out.exists():
        raise UserError(f"{out} is there already: choose another name, or remove it")
    h5py = hdf5()
    frames = 0

    def write(temporary: Path) -> None:
        nonlocal frames
        with _Patient(temporary, "w+") as sink:
            with h5py.File(sink, "w") as file:
                frames = _write(dataset, file, sink, progress)
            sink.check()

    with disk_errors(out.parent, kept=KEEP):
        out.parent.mkdir(parents=True, exist_ok=True)
        need, free = cache_bytes(dataset.features.cameras.values(), len(dataset)), shutil.disk_usage(out.parent).free
        if need > free:
            raise UserError(f"{out} needs {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free: free some, or take fewer")
        write_atomically(out, write)
    return len(dataset.episodes), frames


class _Patient(io.FileIO):
    """Takes everything once a write has failed: HDF5 must be able to close its file, or it brings the process down."""

    _failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while len(rest) and self._failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        return size or 0 if self._failure else super().truncate(size)

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure


def _write(dataset: Dataset | Mixture, file: Any, sink: _Patient, progress: Progress) -> int:
    episodes, features, done = dataset.episodes, dataset.features, 0
    data, lengths = file.create_group("data"), (episodes.stop - episodes.start).tolist()
    groups, kept = state_groups(features.state_names), _kept_columns(dataset)
    for number, length in enumerate(lengths):
        progress(number, len(lengths))
        demo = data.create_group(f"demo_{number}")
        obs = demo.create_group("obs")
        for camera, size in features.cameras.items():
            obs.create_dataset(f"{camera}_image", (length, *size, 3), np.uint8)
        vectors: dict[str, list[np.ndarray]] = {}
        for begin in range(0, length, BLOCK):
            rows = np.arange(begin, min(begin + BLOCK, length))
            batch = dataset.batch(done + rows)
            for camera in features.cameras:
                obs[f"{camera}_image"][rows[0] : rows[-1] + 1] = batch[IMAGE_PREFIX + camera]
            vectors.setdefault(ACTION, []).append(batch[ACTION][:, 0])
            for key in (STATE, ENVIRONMENT_STATE):
                if key in batch:
                    vectors.setdefault(key, []).append(batch[key])
        whole = {key: np.concatenate(blocks) for key, blocks in vectors.items()}
        for key, columns in groups.items():
            _named(obs, key, whole[STATE][:, columns], [features.state_names[i] for i in columns])
        if ENVIRONMENT_STATE in whole:
            _named(obs, OBJECT, whole[ENVIRONMENT_STATE], features.environment_names)
        _named(demo, "actions", whole[ACTION], features.action_names)
        start = int(episodes.start[number])
        _rewards(demo, length, {key: values[start : start + length] for key, values in kept.items()})
        demo.attrs["num_samples"] = length
        demo.attrs[SENTENCE], demo.attrs[TASK] = episodes.sentence[number], episodes.task[number]
        if episodes.seed[number] >= 0:
            demo.attrs[SEED] = int(episodes.seed[number])
        done += length
        file.flush()
        sink.check()
    origin = dataset.provenance.get("robomimic") or {}
    data.attrs["total"] = done
    data.attrs["env_args"] = json.dumps(origin.get("env_args") or _env_args(dataset), indent=4)
    for name, places in _masks(dataset, origin.get("masks")).items():
        file.create_dataset(f"mask/{name}", data=np.array([f"demo_{i}" for i in places], dtype="S"))
    progress(len(lengths), len(lengths))
    return done


def state_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Key in ``obs`` -> places in the state: ``eef.0``, ``eef.1`` is ``eef``; what is not numbered so is ``state``."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        key, dot, digits = name.rpartition(".")
        numbered = bool(dot) and digits.isdecimal() and int(digits) == len(groups.get(key, []))
        groups.setdefault(key if numbered else "state", []).append(place)
    return groups


def _named(group: Any, key: str, values: np.ndarray, names: Sequence[str]) -> None:
    group.create_dataset(key, data=values)
    group[key].attrs[NAMES] = json.dumps(list(names))


def _rewards(demo: Any, length: int, kept: dict[str, np.ndarray]) -> None:
    last = np.zeros(length)
    last[-1] = 1
    kept = {"rewards": last, "dones": last} | {name: kept[column] for name, column in KEPT.items() if column in kept}
    for name, values in kept.items():
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        demo.create_dataset(name, data=values.astype(np.int64) if name == "dones" else values.astype(np.float64))


def _kept_columns(dataset: Dataset | Mixture) -> dict[str, np.ndarray]:
    """Columns of rewards, dones and simulator states over all frames of one data set; a mixture's are left out."""
    if isinstance(dataset, Mixture):
        return {}
    return dataset.further(list(KEPT.values()))


def _env_args(dataset: Dataset | Mixture) -> dict[str, Any]:
    """What robomimic wants to know: it cannot make our environments (type 0 is robosuite), only read of them."""
    origin = dataset.provenance
    kwargs = {**(origin.get("options") or {}), "control_freq": dataset.features.fps}
    return {"env_name": origin.get("environment") or "unknown", "type": -1, "env_kwargs": kwargs}


def _masks(dataset: Dataset | Mixture, given: dict[str, list[int]] | None) -> dict[str, list[int]]:
    numbers = dataset.episodes.index.tolist()
    if given:
        places = {name: [numbers.index(i) for i in of if i in numbers] for name, of in given.items()}
        return {name: of for name, of in places.items() if of}
    held = held_out(dataset.episodes.task)
    chosen = {"train": np.flatnonzero(~held).tolist(), "valid": np.flatnonzero(held).tolist()}
    return {name: of for name, of in chosen.items() if of} if held.any() else {"train": chosen["train"]}
