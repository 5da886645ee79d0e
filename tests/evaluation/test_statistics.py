import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_robot.evaluation.statistics import Z_95, Rate, mcnemar, paired_difference, quantiles, wilson

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
pairs = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3; the last two by hand from the quadratic.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


@given(counts)
def test_wilson_bounds_are_the_rates_that_the_score_test_just_rejects(count):
    successes, n = count
    rate = successes / n
    low, high = wilson(successes, n)
    assert 0 <= low <= rate <= high <= 1
    for bound in (low, high):
        assert abs(rate - bound) == pytest.approx(Z_95 * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@given(counts)
def test_wilson_treats_failures_as_it_treats_successes(count):
    successes, n = count
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts)
def test_wilson_narrows_when_the_same_rate_is_seen_more_often(count):
    successes, n = count
    low, high = wilson(successes, n)
    low4, high4 = wilson(4 * successes, 4 * n)
    assert high4 - low4 < high - low


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_a_rate_is_written_with_its_interval():
    assert str(Rate.of([True] * 9 + [False])) == "90 % [60, 98]"


@pytest.mark.parametrize(
    ("b", "c", "p"), [(5, 0, 0.0625), (10, 2, 158 / 4096), (0, 0, 1.0), (4, 4, 1.0), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_two_sided_binomial_test(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_symmetric_and_a_probability(b, c):
    assert mcnemar(b, c) == mcnemar(c, b)
    assert 0 < mcnemar(b, c) <= 1


@given(pairs)
def test_the_paired_interval_holds_the_difference_and_turns_with_it(rows):
    first, second, strata = zip(*rows, strict=True)
    one = paired_difference(first, second, strata, resamples=2000)
    other = paired_difference(second, first, strata, resamples=2000)
    assert one.ci95[0] - 1e-12 <= one.difference <= one.ci95[1] + 1e-12
    assert one.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert other.difference == pytest.approx(-one.difference)
    assert other.ci95 == pytest.approx((-one.ci95[1], -one.ci95[0]), abs=2.5 / len(rows))  # resampled anew


def test_the_paired_interval_is_that_of_resampling_the_pairs():
    rng = np.random.default_rng(7)
    first, second = rng.random(60) < 0.8, rng.random(60) < 0.5
    d = first.astype(int) - second.astype(int)
    plain = np.array([rng.choice(d, size=60).mean() for _ in range(20_000)])
    got = paired_difference(first, second, ["only"] * 60)
    assert got.ci95 == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.018)  # one pair is 1/60


def test_strata_keep_the_number_of_episodes_per_task_fixed():
    first, second = [True] * 10 + [False] * 10, [False] * 20
    by_task = paired_difference(first, second, ["a"] * 10 + ["b"] * 10)
    pooled = paired_difference(first, second, ["a"] * 20)
    assert by_task.ci95 == (0.5, 0.5)
    assert pooled.ci95[0] < 0.4 < 0.6 < pooled.ci95[1]


def test_the_same_seed_gives_the_same_interval():
    first, second = [True, True, False, True] * 5, [False, True, False, False] * 5
    assert paired_difference(first, second, "t" * 20) == paired_difference(first, second, "t" * 20)


def test_unequal_lists_cannot_be_paired():
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([True], [True, False], ["a"])


def test_quantiles_of_nothing_are_nothing():
    assert quantiles([]) is None
    assert quantiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": 2.9, "max": 3.0}
