"""How long each stage of the control loop takes, as histograms that do not grow with time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

SHORTEST_S, DECADES, BINS_PER_DECADE = 1e-6, 8, 40
"""From a microsecond to 100 seconds, in bins that are 6 % wide."""


class Timings:
    """One histogram per stage, with logarithmic bins."""

    def __init__(self) -> None:
        self._counts: dict[str, np.ndarray] = {}
        self._longest: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Count one duration."""
        counts = self._counts.setdefault(stage, np.zeros(DECADES * BINS_PER_DECADE, dtype=np.int64))
        place = math.log10(max(seconds, SHORTEST_S) / SHORTEST_S) * BINS_PER_DECADE
        counts[min(int(place), len(counts) - 1)] += 1
        self._longest[stage] = max(self._longest.get(stage, 0.0), seconds)

    def summary(self) -> Mapping[str, Mapping[str, float]]:
        """Stage -> ``n``, and ``p50``, ``p95``, ``p99``, ``max`` in seconds; percentiles are upper ends of bins."""
        return {stage: self._summary(stage) for stage in tuple(self._counts)}

    def _summary(self, stage: str) -> Mapping[str, float]:
        counts, longest = self._counts[stage], self._longest[stage]
        below, n = counts.cumsum(), int(counts.sum())
        summary: dict[str, float] = {"n": n}
        for percent in (50, 95, 99):
            place = int(np.searchsorted(below, math.ceil(n * percent / 100)))
            summary[f"p{percent}"] = min(SHORTEST_S * 10 ** ((place + 1) / BINS_PER_DECADE), longest)
        return summary | {"max": longest}
