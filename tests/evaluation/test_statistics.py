import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_robot.evaluation.statistics import (
    Z_95,
    Rate,
    hierarchical_interval,
    holm,
    mcnemar,
    mean_of_tasks,
    paired_difference,
    quantiles,
    wilson,
)

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


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        # Four tests by hand: 4 * 0.005, 3 * 0.01, then 2 * 0.03 and 1 * 0.04 which may not fall below it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5, 1.0], [1.0, 1.0, 1.0]),
    ],
)
def test_holm_gives_the_adjusted_values_computed_by_hand(raw, adjusted):
    assert holm(raw) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_never_exceeds_bonferroni_and_keeps_the_order(raw):
    adjusted = holm(raw)
    for p, q in zip(raw, adjusted, strict=True):
        assert p <= q <= min(1.0, p * len(raw))
    ranked = [q for _, q in sorted(zip(raw, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_the_hierarchical_interval_of_one_seed_is_that_of_its_episodes():
    outcomes = [1] * 30 + [0] * 10
    low, high = hierarchical_interval([[outcomes]])
    rng = np.random.default_rng(1)
    plain = np.percentile([rng.choice(outcomes, 40).mean() for _ in range(10_000)], [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(plain), abs=0.026)  # one episode is 1/40


def test_the_hierarchical_interval_is_that_of_drawing_seeds_then_episodes_within_tasks():
    rng = np.random.default_rng(3)
    values = [[rng.choice([-1, 0, 1], 8, p=[0.2, p, 0.8 - p]).tolist() for _ in range(2)] for p in (0.1, 0.4, 0.7)]
    means = []
    for _ in range(10_000):
        drawn = [values[i] for i in rng.integers(3, size=3)]
        means.append(np.mean([rng.choice(task, len(task)) for tasks in drawn for task in tasks]))
    assert hierarchical_interval(values) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.03)


def test_seeds_that_differ_widen_the_interval_beyond_that_of_the_episodes():
    alike = [[[1] * 20 + [0] * 20]] * 4
    apart = [[[1] * 40], [[0] * 40], [[1] * 40], [[0] * 40]]
    assert hierarchical_interval(apart) == pytest.approx((0, 1))
    low, high = hierarchical_interval(alike)
    assert 0.35 < low < 0.5 < high < 0.65


def test_a_task_keeps_its_number_of_episodes():
    assert hierarchical_interval([[[1] * 10, [0] * 30]] * 3) == (0.25, 0.25)


def test_the_interval_holds_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    truth, held, trials = 0.7, 0, 200
    for _ in range(trials):
        rates = np.clip(rng.normal(truth, 0.08, size=5), 0, 1)  # what training again changes
        values = [[rng.binomial(1, rate, 20).tolist() for _ in range(3)] for rate in rates]
        low, high = hierarchical_interval(values, resamples=1000)
        held += low <= truth <= high
    assert 0.88 <= held / trials <= 0.99


@pytest.mark.parametrize("values", [[], [[]], [[[]]], [[[1], []]], [[[1]], [[1], [0]]]])
def test_outcomes_that_make_no_mean_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        hierarchical_interval(values)


def test_the_mean_of_tasks_is_weighted_and_its_interval_that_of_resampling_within_tasks():
    outcomes = [[True] * 6 + [False] * 4, [True] * 2 + [False] * 18]
    mean, (low, high) = mean_of_tasks(outcomes, [0.75, 0.25])
    assert mean == pytest.approx(0.75 * 0.6 + 0.25 * 0.1)
    rng = np.random.default_rng(1)
    again = [0.75 * rng.choice(outcomes[0], 10).mean() + 0.25 * rng.choice(outcomes[1], 20).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(again, [2.5, 97.5])), abs=0.02)


def test_tasks_that_never_vary_give_no_width():
    assert mean_of_tasks([[True] * 5, [False] * 5], [0.5, 0.5]) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize(
    ("outcomes", "weights"), [([[True], []], [0.5, 0.5]), ([[True]], [0.5, 0.5]), ([[True], [False]], [0.5, 0.6])]
)
def test_weights_that_make_no_mean_are_refused(outcomes, weights):
    with pytest.raises(ValueError, match="sum to 1"):
        mean_of_tasks(outcomes, weights)
