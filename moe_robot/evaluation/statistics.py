"""Intervals and tests for success rates: Wilson, bootstraps, exact McNemar, Holm (numpy and math only)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a success rate: Wilson, JASA 22 (1927), without continuity correction.

    Unlike rate ± 2 standard errors it stays inside [0, 1] and keeps its width at 0 and n successes.

    Raises:
        ValueError: unless ``0 <= successes <= n`` and ``n >= 1``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    rate, z2 = successes / n, Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # The bounds at 0 and n successes are exactly 0 and 1; floating point would miss them by an ulp.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Rate:
    """A success rate with its interval; neither is ever shown without the other."""

    successes: int
    n: int

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Rate:
        """The rate of a list of outcomes."""
        return cls(sum(map(bool, outcomes)), len(outcomes))

    @property
    def value(self) -> float:
        """Successes over trials."""
        return self.successes / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """The Wilson 95 % interval."""
        return wilson(self.successes, self.n)

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{100 * self.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass(frozen=True)
class PairedDifference:
    """Mean of first minus second over episodes with the same task and seed, in [-1, 1].

    Attributes:
        difference: the mean over all pairs.
        ci95: the percentile bootstrap interval.
        n: the number of pairs.
        p_value: exact McNemar, two-sided, for "both succeed equally often".
    """

    difference: float
    ci95: tuple[float, float]
    n: int
    p_value: float


def paired_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    strata: Sequence[Hashable],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """How much more often ``first`` succeeds than ``second``, pair by pair.

    The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) draws pairs anew within each stratum (a task), so
    that every resample has as many episodes of each task as were run. A pair's difference is -1, 0 or 1; drawing n
    of them with replacement is one draw of their three counts from a multinomial, which is what is done.

    Raises:
        ValueError: for empty or unequally long arguments.
    """
    if not len(first) == len(second) == len(strata) or not len(first):
        raise ValueError(f"expected equally many outcomes, got {len(first)}, {len(second)}, {len(strata)} strata")
    difference = np.asarray(first, dtype=int) - np.asarray(second, dtype=int)
    rng = np.random.default_rng(seed)
    totals = np.zeros(resamples, dtype=np.int64)
    for stratum in dict.fromkeys(strata):
        mine = difference[[s == stratum for s in strata]]
        shares = [np.mean(mine == value) for value in (-1, 0, 1)]
        counts = rng.multinomial(len(mine), shares, size=resamples)
        totals += counts[:, 2] - counts[:, 0]
    low, high = np.percentile(totals / len(difference), [2.5, 97.5])
    return PairedDifference(
        difference=float(difference.mean()),
        ci95=(float(low), float(high)),
        n=len(difference),
        p_value=mcnemar(first_only=int((difference > 0).sum()), second_only=int((difference < 0).sum())),
    )


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p-value of McNemar (Psychometrika 12, 1947) from the two counts of discordant pairs.

    Under the null each discordant pair falls either way with probability 1/2, so the smaller count is binomial.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"counts cannot be negative, got {first_only} and {second_only}")
    n = first_only + second_only
    tail = sum(math.comb(n, k) for k in range(min(first_only, second_only) + 1))
    return min(1.0, 2 * tail / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests, in the order given: Holm, Scandinavian Journal of Statistics 6 (1979).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none is smaller than one before it, none exceeds
    1. Rejecting those below alpha keeps the chance of any false rejection below alpha, however the tests depend on
    each other.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def mean_of_tasks(
    outcomes: Sequence[Sequence[bool]], weights: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The weighted mean of the tasks' success rates, and its 95 % percentile bootstrap interval.

    Episodes are drawn anew within each task, as in :func:`paired_difference`. A task that always succeeded, or never,
    draws the same again and adds no width: with few episodes of each task the interval is a narrow one.

    Args:
        outcomes: per task, of its episodes.
        weights: one per task, which sum to 1.
        resamples: how many.
        seed: of the random draws.

    Raises:
        ValueError: a task without episodes, another number of weights than tasks, weights that do not sum to 1.
    """
    if not all(map(len, outcomes)) or len(outcomes) != len(weights) or not math.isclose(sum(weights), 1):
        raise ValueError("expected episodes of every task, and one weight for each that sum to 1")
    n_T, weight_T = np.array([len(task) for task in outcomes]), np.asarray(weights, dtype=float)
    rate_T = np.array([sum(map(bool, task)) for task in outcomes]) / n_T
    drawn_RT = np.random.default_rng(seed).binomial(n_T, rate_T, size=(resamples, len(n_T))) / n_T
    low, high = np.percentile(drawn_RT @ weight_T, [2.5, 97.5])
    return float(rate_T @ weight_T), (float(low), float(high))


def hierarchical_interval(
    values: Sequence[Sequence[Sequence[int]]], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of outcomes from several training runs.

    Two stages (Davison and Hinkley 1997, section 3.8): as many training seeds as there are, drawn with replacement;
    then, for each of those, as many episodes of each task as were played, drawn with replacement. So it speaks of what
    a preset does when it is trained again and meets other episodes, where :func:`wilson` speaks of these networks.
    With n outcomes of -1, 0 or 1, drawing n of them is a draw of their counts, which is what is done.

    With few seeds the first stage has little to draw from: of one seed it tells nothing (only episodes vary then), and
    with three the interval is a rough one.

    Args:
        values: per training seed, per task, the outcomes: -1, 0 or 1 (0 or 1 for successes, any for differences).
        resamples: how many.
        seed: of the random draws.

    Raises:
        ValueError: no seed, no task or no episode, or seeds with different numbers of tasks.
    """
    if not values or len({len(tasks) for tasks in values}) != 1 or not all(len(v) for tasks in values for v in tasks):
        raise ValueError("expected outcomes for every task of every training seed, and as many tasks for each seed")
    n_ST = np.array([[len(task) for task in tasks] for tasks in values])
    if not n_ST.size:
        raise ValueError("expected at least one task")
    up_ST = np.array([[sum(value > 0 for value in task) for task in tasks] for tasks in values])
    down_ST = np.array([[sum(value < 0 for value in task) for task in tasks] for tasks in values])
    not_up_ST = n_ST - up_ST
    rng = np.random.default_rng(seed)
    drawn_RS = rng.integers(len(values), size=(resamples, len(values)))
    n_RST = n_ST[drawn_RS]
    up_RST = rng.binomial(n_RST, (up_ST / n_ST)[drawn_RS])
    down_RST = rng.binomial(n_RST - up_RST, (down_ST / np.maximum(not_up_ST, 1))[drawn_RS])
    means_R = (up_RST - down_RST).sum(axis=(1, 2)) / n_RST.sum(axis=(1, 2))
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(low), float(high)


def quantiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """``{"p50", "p95", "max"}`` of measured times, or None when nothing was measured."""
    if not len(milliseconds):
        return None
    p50, p95, top = np.percentile(np.asarray(milliseconds, dtype=float), [50, 95, 100])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "max": round(float(top), 3)}
