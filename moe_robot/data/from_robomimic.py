"""From a robomimic file to a data set of LeRobot's layout: a demonstration is an episode, on disk once it is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.data.durable import disk_errors, only_writer
from moe_robot.data.record import EpisodeBuilder
from moe_robot.data.robomimic import (
    KEPT,
    OBJECT,
    SEED,
    SENTENCE,
    TASK,
    Contents,
    checked,
    chosen_low_dim,
    opened,
    read_contents,
    values_of,
)
from moe_robot.data.schema import Columns
from moe_robot.data.store import DatasetWriter
from moe_robot.registry import unknown
from moe_robot.types import Features, UserError

BLOCK = 64
"""Frames that are read at once."""
Progress = Callable[[int, int], None]
"""Told (episodes done, episodes in all)."""


@dataclass(frozen=True)
class Choice:
    """What of a file is taken, and what it does not say itself.

    Attributes:
        cameras: only these; None for all.
        low_dim: keys of ``obs`` that make the state, in this order; empty for all but ``object``, which tells where
            things are and is kept as the environment's state, a label.
        fps: control steps per second; None for ``control_freq`` of the file's environment.
        sentence: the instruction; None for what the file says.
        codec: how pictures are stored, see :class:`moe_robot.data.record.EpisodeBuilder`.
    """

    cameras: tuple[str, ...] | None = None
    low_dim: tuple[str, ...] = ()
    fps: int | None = None
    sentence: str | None = None
    codec: str = "png"


def from_robomimic(
    source: Path, out: Path, choice: Choice | None = None, progress: Progress = lambda done, total: None
) -> tuple[int, int]:
    """Convert, or go on where an earlier call was stopped. Returns (episodes, frames) of the data set.

    What the features do not hold is kept beside them: rewards, dones and simulator states as columns, ``env_args`` and
    masks under ``robomimic`` in ``info.json``. Not kept: ``next_obs`` (it follows) and each demonstration's model.

    Raises:
        UserError: the file is damaged or not robomimic's, or ``out`` holds another data set.
    """
    choice = choice or Choice()
    with opened(source) as file:
        contents = read_contents(source, file)
        low_dim, has_objects = chosen_low_dim(source, contents, choice.low_dim)
        features = _features(source, contents, choice, low_dim, has_objects)
        kept = {"env_args": contents.env_args, "masks": {name: list(at) for name, at in contents.masks.items()}}
        provenance = {"robomimic": {"demos": len(contents.demos), "content": _fingerprint(source), **kept}}
        with disk_errors(out), only_writer(out):
            writer = DatasetWriter(out, features, provenance, choice.codec, contents.kept)
            for number in range(writer.episodes, len(contents.demos)):
                progress(number, len(contents.demos))
                name = contents.demos[number]
                demo = _Demo(source, file["data"][name], name, contents, low_dim, has_objects)
                writer.append(demo.record(features, choice, contents.kept))
                writer.commit()
            progress(len(contents.demos), len(contents.demos))
    return writer.episodes, writer.frames


def _features(source: Path, contents: Contents, choice: Choice, low_dim: Sequence[str], has_objects: bool) -> Features:
    for camera in choice.cameras or ():
        if camera not in contents.cameras:
            raise unknown(f"camera of {source}", camera, contents.cameras)
    fps = choice.fps or (contents.env_args.get("env_kwargs") or {}).get("control_freq")
    if not fps:
        raise UserError(f"{source} does not tell its control rate (env_args, control_freq): give it with --fps")
    return Features(
        cameras={
            camera: size
            for camera, (_, size) in contents.cameras.items()
            if choice.cameras is None or camera in choice.cameras
        },
        state_names=tuple(name for key in low_dim for name in contents.low_dim[key]),
        action_names=contents.actions,
        fps=int(fps),
        environment_names=contents.low_dim[OBJECT] if has_objects else (),
    )


@dataclass(frozen=True)
class _Demo:
    source: Path
    group: Any
    name: str
    contents: Contents
    low_dim: Sequence[str]
    has_objects: bool

    def record(self, features: Features, choice: Choice, further: Columns) -> Any:
        """The demonstration as an episode."""
        cameras = {camera: f"obs/{self.contents.cameras[camera][0]}" for camera in features.cameras}
        kept = {column: key for key, column in KEPT.items() if column in further}
        objects = [OBJECT] if self.has_objects else []
        keys = [f"obs/{key}" for key in (*self.low_dim, *objects)]
        length = checked(self.source, self.group, self.name, [*cameras.values(), *keys, *kept.values()])
        builder = EpisodeBuilder(features, choice.codec, further)
        states, actions = self._joined(self.low_dim), self._rows("actions")
        where = self._joined(objects) if objects else None
        for begin in range(0, length, BLOCK):
            rows = slice(begin, min(begin + BLOCK, length))
            pictures = {c: values_of(self.source, self.group, self.name, key, rows) for c, key in cameras.items()}
            for at in range(rows.start, rows.stop):
                shown = {camera: frames[at - begin] for camera, frames in pictures.items()}
                try:
                    builder.add(shown, states[at], actions[at], None if where is None else where[at])
                except UserError as error:
                    raise UserError(f"{self.source}, {self.name}: {error}") from error
        attributes = self.group.attrs
        sentence = choice.sentence or attributes.get(SENTENCE) or self.contents.sentence
        sentence = sentence or self.contents.env_args.get("env_name")
        if not sentence:
            raise UserError(f"{self.source} does not tell what is to be done: give the instruction with --instruction")
        extras = {TASK: attributes.get(TASK), SEED: attributes.get(SEED)}
        if "rewards" in self.group:
            extras["success"] = bool((self._rows("rewards") > 0).any())
        given = {name: value.item() if hasattr(value, "item") else value for name, value in extras.items()}
        values = {column: self._rows(key) for column, key in kept.items()}
        return builder.finish(str(sentence), {k: v for k, v in given.items() if v is not None}, values)

    def _rows(self, key: str) -> np.ndarray:
        values = values_of(self.source, self.group, self.name, key)
        return values.reshape(len(values), -1)

    def _joined(self, keys: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._rows(f"obs/{key}") for key in keys], axis=1)


def _fingerprint(source: Path) -> str:
    """Of the file's content, so that a conversion that was stopped does not go on with another file."""
    with source.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
