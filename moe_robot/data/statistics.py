"""Statistics of features over frames, as LeRobot keeps them: moments, extremes, quantiles; mergeable over episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from moe_robot.types import FeatureStatistics, UserError

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_GREY_LEVELS = np.arange(256) / 255.0


def vector_statistics(values: np.ndarray) -> FeatureStatistics:
    """Statistics of ``values`` (N, D), N >= 1, over its rows, in float64. ``std`` divides by N, as LeRobot does.

    Quantiles are those of ``numpy.quantile`` (linear interpolation between order statistics).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"expected an array (N, D) with N >= 1, got {values.shape}")
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return FeatureStatistics(
        mean=values.mean(axis=0),
        std=values.std(axis=0),
        min=values.min(axis=0),
        max=values.max(axis=0),
        count=len(values),
        quantiles=dict(zip(QUANTILES, quantiles, strict=True)),
    )


class ImageStatistics:
    """Running statistics of uint8 frames per channel, in [0, 1]: exact, from one histogram of all pixels.

    Every pixel of every frame counts: with a histogram that is cheaper than choosing a subset of frames, and
    nothing depends on a choice. ``count`` is in frames.
    """

    def __init__(self) -> None:
        self._histogram = np.zeros((3, 256), dtype=np.int64)
        self._frames = 0

    def add(self, frames: np.ndarray | Sequence[np.ndarray]) -> None:
        """Count the pixels of ``frames``, each uint8 (H, W, 3)."""
        for channel in range(3):
            counts = np.zeros(256)
            for frame in frames:
                counts += cv2.calcHist([frame], [channel], None, [256], (0, 256)).ravel()  # float32: exact to 2^24
            self._histogram[channel] += counts.astype(np.int64)
        self._frames += len(frames)

    def statistics(self) -> FeatureStatistics:
        """The statistics of all frames added, arrays of shape (3,)."""
        weights = self._histogram / self._histogram.sum(axis=1, keepdims=True)
        mean = weights @ _GREY_LEVELS
        variance = (weights * (_GREY_LEVELS - mean[:, None]) ** 2).sum(axis=1)
        present = self._histogram > 0
        return FeatureStatistics(
            mean=mean,
            std=np.sqrt(variance),
            min=_GREY_LEVELS[present.argmax(axis=1)],
            max=_GREY_LEVELS[255 - present[:, ::-1].argmax(axis=1)],
            count=self._frames,
            quantiles={name: self._quantile(q) for name, q in QUANTILES.items()},
        )

    def _quantile(self, q: float) -> np.ndarray:
        cumulative = self._histogram.cumsum(axis=1)
        position = q * (cumulative[:, -1] - 1)
        below, above = np.floor(position), np.ceil(position)
        low, high = (
            np.array(
                [_GREY_LEVELS[np.searchsorted(row, at, side="right")] for row, at in zip(cumulative, rank, strict=True)]
            )
            for rank in (below, above)
        )
        return low + (high - low) * (position - below)


def combine(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """Statistics of the union of disjoint ``parts``.

    Mean, standard deviation, extremes and count are exact (Chan, Golub and LeVeque 1979, pairwise update). Quantiles
    of a union do not follow from quantiles of its parts: as in LeRobot they are the count-weighted mean, and
    whoever has the vectors replaces them by the exact ones (:func:`vector_statistics`).
    """
    if not parts:
        raise ValueError("nothing to combine")
    count = np.array([part.count for part in parts], dtype=np.float64)
    share = (count / count.sum())[:, None]
    means = np.stack([part.mean for part in parts])
    mean = (share * means).sum(axis=0)
    variance = (share * (np.stack([part.std for part in parts]) ** 2 + (means - mean) ** 2)).sum(axis=0)
    names = [name for name in QUANTILES if all(name in part.quantiles for part in parts)]
    return FeatureStatistics(
        mean=mean,
        std=np.sqrt(variance),
        min=np.stack([part.min for part in parts]).min(axis=0),
        max=np.stack([part.max for part in parts]).max(axis=0),
        count=int(count.sum()),
        quantiles={name: (share * np.stack([part.quantiles[name] for part in parts])).sum(axis=0) for name in names},
    )


def to_columns(statistics: FeatureStatistics, image: bool) -> dict[str, list]:
    """LeRobot's form: ``min``, ``max``, ``mean``, ``std``, ``count``, quantiles as lists; images nested (3, 1, 1)."""

    def nest(values: np.ndarray) -> list:
        return np.reshape(values, (-1, 1, 1) if image else (-1,)).tolist()

    moments = {name: nest(getattr(statistics, name)) for name in ("min", "max", "mean", "std")}
    return {**moments, "count": [statistics.count], **{name: nest(q) for name, q in statistics.quantiles.items()}}


def from_columns(columns: Mapping[str, Any]) -> FeatureStatistics:
    """The inverse of :func:`to_columns`, of either form. Quantiles that are not there stay away."""
    moments = {name: np.asarray(columns[name], dtype=np.float64).reshape(-1) for name in ("min", "max", "mean", "std")}
    quantiles = {
        name: np.asarray(columns[name], dtype=np.float64).reshape(-1)
        for name in QUANTILES
        if columns.get(name) is not None
    }
    return FeatureStatistics(**moments, count=int(np.ravel(columns["count"])[0]), quantiles=quantiles)


def load_statistics(directory: str | Path) -> dict[str, FeatureStatistics]:
    """The statistics of a data set by feature, from its ``meta/stats.json``.

    Raises:
        UserError: the file is missing or is not LeRobot's.
    """
    path = Path(directory) / "meta" / "stats.json"
    try:
        return {name: from_columns(columns) for name, columns in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: expected a LeRobot v3 data set with statistics") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is broken ({error}): expected mean, std, min, max and count per feature") from error
