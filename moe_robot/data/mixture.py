"""Several data sets as one for training, drawn from by weight, each with its own selection and its own names.

A mixture is a YAML file, a list of parts:

    - data: demos/pitstop           # a data set, relative to the file
      weight: 3                     # left out everywhere: by size, every frame alike
    - data: demos/so101
      weight: 1
      tasks: [pick up the cup]
      episodes: 0-99,120
      cameras: [front, wrist]       # by their names after renaming
      rename: {laptop: front, phone: wrist, shoulder_pan.pos: joint1.pos}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.data.episodes import joined
from moe_robot.data.loader import Dataset, FrameSource, open_dataset
from moe_robot.data.match import order_of, require_match
from moe_robot.data.sampler import mixture_indices
from moe_robot.data.selection import NoEpisodes, Split
from moe_robot.data.statistics import combine, vector_statistics
from moe_robot.registry import unknown
from moe_robot.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureStatistics, UserError


@dataclass(frozen=True)
class Part:
    """One data set of a mixture.

    Attributes:
        data: its folder.
        weight: its share of the training batches, in any unit; None: as many frames as it has.
        tasks: only these.
        episodes: only these, for example ``"0-99,120"``.
        cameras: only these, by their names after ``rename``.
        rename: foreign names -> those of the mixture.
    """

    data: Path
    weight: float | None = None
    tasks: tuple[str, ...] | None = None
    episodes: str | None = None
    cameras: tuple[str, ...] | None = None
    rename: Mapping[str, str] | None = None


class Mixture:
    """Has what a :class:`moe_robot.data.loader.Dataset` has for training; the first part says what is needed.

    Attributes:
        parts: the opened data sets.
        weights: their shares, in any unit.
        features: those of the first part; without ``environment_names`` unless all parts have the same.
    """

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float]) -> None:
        self.parts, self.weights = tuple(parts), tuple(map(float, weights))
        first, *others = parts
        for other in others:
            require_match(first.features, other.features, str(other.directory), str(first.directory))
        same_things = len({part.features.environment_names for part in parts}) == 1
        self.features = first.features if same_things else replace(first.features, environment_names=())
        self._orders = [
            {
                STATE: order_of(first.features.state_names, part.features.state_names),
                ACTION: order_of(first.features.action_names, part.features.action_names),
            }
            for part in parts
        ]
        self.horizon = first.horizon
        self.tasks = tuple(dict.fromkeys(task for part in parts for task in part.tasks))
        self._sizes = tuple(len(part) for part in parts)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self.episodes = joined([part.episodes for part in parts], [part.total_frames for part in parts])
        origins = [dict(part.provenance) for part in parts]
        same = {key for key in origins[0] if all(origin.get(key) == origins[0][key] for origin in origins)}
        self.provenance: Mapping[str, Any] = {key: origins[0][key] for key in same}
        shares = zip(parts, self.weights, strict=True)
        told = [(part.content_hash, part.episodes.index.tolist(), weight) for part, weight in shares]
        self.content_hash = hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def statistics(self) -> dict[str, FeatureStatistics]:
        """Of all chosen frames of all parts together, whatever their weights: those of vectors exact, quantiles too."""
        keys = [key for key in self.parts[0].statistics if key != ENVIRONMENT_STATE or self.features.environment_names]
        found = {}
        for key in keys:
            if key in self.parts[0].vectors:
                blocks = [self._ordered(i, key, part.vectors[key]) for i, part in enumerate(self.parts)]
                found[key] = vector_statistics(np.concatenate(blocks))
            else:
                found[key] = combine([part.statistics[key] for part in self.parts])
        return found

    def draw(self, seed: int, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The indices that :meth:`batch` takes at a step of training."""
        return mixture_indices(seed, step, batch_size, self._sizes, self.weights, rank, world_size)

    def batch(self, indices: np.ndarray | Sequence[int]) -> dict[str, Any]:
        """As :meth:`moe_robot.data.loader.Dataset.batch`, in the order of ``indices``."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"frame {indices.min()} or {indices.max()} is outside 0..{len(self) - 1}")
        which = np.searchsorted(self._starts, indices, side="right") - 1
        pieces, places = [], []
        for number in np.unique(which) if len(indices) else [0]:
            mine = np.flatnonzero(which == number)
            piece = self.parts[number].batch(indices[mine] - self._starts[number])
            pieces.append({key: self._ordered(number, key, value) for key, value in piece.items()})
            places.append(mine)
        back = np.argsort(np.concatenate(places))
        whole: dict[str, Any] = {}
        for key in pieces[0]:
            if key == ENVIRONMENT_STATE and not self.features.environment_names:
                continue  # not all parts have it, or the same of it
            values = [piece[key] for piece in pieces]
            if isinstance(values[0], list):
                flat = [value for piece in values for value in piece]
                whole[key] = [flat[i] for i in back]
            else:
                whole[key] = np.concatenate(values)[back]
        return whole

    def _ordered(self, number: int, key: str, value: Any) -> Any:
        """State and action entries of a part in the order of the first one."""
        order = self._orders[number].get(key)
        return value if order is None else value[..., order]


def read_mixture(path: Path) -> list[Part]:
    """The parts that a mixture file names.

    Raises:
        UserError: the file is no list of parts, an unknown key, a weight that is not positive.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no mixture ({' '.join(str(error).split())[:120]}): expected a YAML list") from error
    if not isinstance(raw, list) or not raw or not all(isinstance(part, dict) and "data" in part for part in raw):
        raise UserError(f"{path} is no mixture: expected a YAML list of parts, each with data: FOLDER")
    known = [field.name for field in fields(Part)]
    parts = []
    for part in raw:
        for key in part:
            if key not in known:
                raise unknown(f"key of a part in {path}", str(key), known)
        weight = part.get("weight")
        if weight is not None and not (isinstance(weight, int | float) and weight > 0):
            raise UserError(f"{path}: weight {weight!r} of {part['data']}: expected a number above 0")
        lists = {key: tuple(map(str, part[key])) for key in ("tasks", "cameras") if part.get(key) is not None}
        episodes = None if part.get("episodes") is None else str(part["episodes"])
        folder = path.parent / str(part["data"])
        parts.append(Part(folder, weight, **lists, episodes=episodes, rename=part.get("rename")))
    weighted = [part.data for part in parts if part.weight is not None]
    if weighted and len(weighted) < len(parts):
        raise UserError(f"{path} gives some parts a weight and others none: weigh all or none")
    return parts


def open_data(
    data: str | Path,
    horizon: int,
    split: Split = "train",
    *,
    tasks: Sequence[str] | None = None,
    episodes: str | None = None,
    cameras: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    frames: FrameSource = "cache",
    show_progress: bool | None = None,
) -> Dataset | Mixture:
    """A data set, or the mixture that a YAML file describes; see :func:`moe_robot.data.loader.open_dataset`.

    Of a mixture's parts those without an episode of the ``split`` are left out.

    Raises:
        FeaturesDiffer: a part does not fit the first one; it holds the table of what matched.
        UserError: as :func:`open_dataset` and :func:`read_mixture`.
    """
    path = Path(data)
    if not path.is_file():
        selection: dict[str, Any] = {"tasks": tasks, "episodes": episodes, "cameras": cameras, "rename": rename}
        return open_dataset(path, horizon, split=split, frames=frames, show_progress=show_progress, **selection)
    if any(choice is not None for choice in (tasks, episodes, cameras, rename)):
        raise UserError(f"{path} is a mixture: choose tasks, episodes, cameras and names in its parts")
    opened, weights = [], []
    for part in read_mixture(path):
        choice: dict[str, Any] = {"tasks": part.tasks, "episodes": part.episodes, "cameras": part.cameras}
        try:
            found = open_dataset(
                part.data,
                horizon,
                split=split,
                rename=part.rename,
                frames=frames,
                show_progress=show_progress,
                **choice,
            )
        except NoEpisodes:
            if split == "validation":
                continue
            raise
        opened.append(found)
        weights.append(len(found) if part.weight is None else part.weight)
    if not opened:
        raise NoEpisodes(f"no part of {path} has an episode for split {split!r}")
    return Mixture(opened, weights)
