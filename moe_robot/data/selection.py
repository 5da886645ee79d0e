"""What of a data set is used, and under which names: cameras, renamed features, tasks, ranges of episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from moe_robot.data.episodes import VALIDATION_EVERY, Episodes, held_out
from moe_robot.data.layout import SCALARS, Info, read_info
from moe_robot.registry import unknown
from moe_robot.types import IMAGE_PREFIX, UserError

Split = Literal["train", "validation", "all"]


class NoEpisodes(UserError):
    """A selection holds no episode of the asked split."""


def read_selected_info(
    directory: Path, cameras: Sequence[str] | None = None, rename: Mapping[str, str] | None = None
) -> Info:
    """``meta/info.json`` as a reader who wants these ``cameras`` (by their new names) and names shall see it.

    ``rename`` maps foreign names to ours: whole features (``observation.joints: observation.state``), cameras
    (``top: front``), or entries of the state and action (``shoulder_pan.pos: joint1.pos``).

    Raises:
        UserError: a name that the data set does not have, two of one name, or what :func:`read_info` raises.
    """
    rename = {str(theirs): str(ours) for theirs, ours in (rename or {}).items()}
    raw = read_info(directory, rename)
    keys = {key for key in raw.raw["features"] if key not in SCALARS}
    f = raw.features
    entries = {*f.state_names, *f.action_names, *f.environment_names}
    for name in rename:
        if name not in {*keys, *f.cameras, *entries}:
            raise unknown(f"name to rename in {directory}", name, {*keys, *f.cameras, *entries})

    def named(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(rename.get(name, name) for name in names)

    camera_names = dict(zip(f.cameras, named(list(f.cameras)), strict=True))
    for what, names in (("cameras", list(camera_names.values())), ("state", named(f.state_names)),
                        ("action", named(f.action_names))):  # fmt: skip
        twice = next((name for name in names if list(names).count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two of the {what} of {directory} would be called {twice!r}: change the rename map")
    chosen = list(camera_names.values()) if cameras is None else list(dict.fromkeys(cameras))
    for camera in chosen:
        if camera not in camera_names.values():
            raise unknown(f"camera of {directory}", camera, camera_names.values())
    old = {new: name for name, new in camera_names.items()}
    vectors = {key: column for key, column in raw.columns.items() if key not in f.cameras}
    return replace(
        raw,
        features=replace(
            f,
            cameras={camera: f.cameras[old[camera]] for camera in chosen},
            state_names=named(f.state_names),
            action_names=named(f.action_names),
            environment_names=named(f.environment_names),
        ),
        storage={camera: raw.storage[old[camera]] for camera in chosen},
        columns={camera: raw.columns[old[camera]] for camera in chosen} | vectors,
    )


def parse_rename(pairs: Sequence[str]) -> dict[str, str] | None:
    """``("laptop=front",)`` -> ``{"laptop": "front"}``, None for nothing."""
    renamed = {}
    for pair in pairs:
        theirs, equals, ours = pair.partition("=")
        if not (theirs and equals and ours):
            raise UserError(f"rename {pair!r}: expected THEIRS=OURS, for example laptop=front")
        renamed[theirs] = ours
    return renamed or None


def parse_episodes(text: str) -> list[range]:
    """``"0-99,120"`` -> ``[range(0, 100), range(120, 121)]``. Both ends count.

    Raises:
        UserError: something else than numbers and ranges.
    """
    ranges = []
    for part in filter(None, (part.strip() for part in str(text).split(","))):
        first, dash, last = part.partition("-")
        try:
            begin, end = int(first), int(last if dash else first)
        except ValueError:
            raise UserError(f"episodes {part!r}: expected numbers and ranges, for example 0-99,120") from None
        if end < begin:
            raise UserError(f"episodes {part!r}: the range ends before it begins")
        ranges.append(range(begin, end + 1))
    if not ranges:
        raise UserError("no episodes are named: expected numbers and ranges, for example 0-99,120")
    return ranges


def select_episodes(
    directory: Path,
    episodes: Episodes,
    tasks: Sequence[str] | None,
    split: Split,
    ranges: Sequence[range] | None,
) -> Episodes:
    """The episodes of these ``tasks`` and ``ranges`` that belong to the ``split``.

    Which episodes are held out does not depend on tasks and ranges, so that two selections never disagree on it.

    Raises:
        UserError: an unknown task, an episode that is not there.
        NoEpisodes: nothing is left.
    """
    chosen = np.ones(len(episodes), dtype=bool)
    for task in tasks or ():
        if task not in episodes.task:
            raise unknown("task of the data set", task, set(episodes.task))
    if tasks is not None:
        chosen &= np.isin(np.array(episodes.task, dtype=object), list(tasks))
    if ranges is not None:
        last = max(part.stop for part in ranges) - 1
        if last >= len(episodes):
            raise UserError(f"{directory} has no episode {last}: it has {len(episodes)}, 0 to {len(episodes) - 1}")
        chosen &= np.isin(episodes.index, [i for part in ranges for i in part])
    if split not in ("train", "validation", "all"):
        raise unknown("split", split, ("train", "validation", "all"))
    if split != "all":
        chosen &= held_out(episodes.task) == (split == "validation")
    if not chosen.any():
        raise NoEpisodes(
            f"{directory} has no episode for split {split!r}: validation takes every {VALIDATION_EVERY}th episode"
            " of a task, collect more or use another split"
        )
    return episodes.where(chosen)


def vector_columns(info: Info) -> dict[str, str]:
    """Our key of each vector -> its column in the files."""
    return {key: column for key, column in info.columns.items() if key not in info.features.cameras}


def image_keys(info: Info) -> dict[str, str]:
    """``observation.images.<camera>`` -> the camera's key in the files."""
    return {IMAGE_PREFIX + camera: info.columns[camera] for camera in info.features.cameras}
