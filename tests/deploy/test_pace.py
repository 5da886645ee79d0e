"""When control steps are due."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_robot.deploy.pace import FARTHEST, SPARE, Pace

PERIOD = 0.1


@given(st.floats(0, 1), st.floats(0, 0.004), st.integers(0, 2**32 - 1))
def test_steps_settle_soon_after_answers_whatever_the_phase(phase, jitter, seed):
    rng = np.random.default_rng(seed)
    pace, waited, due = Pace(PERIOD, 0.0), [], [0.0]
    answer = phase * PERIOD
    for _ in range(80):
        while answer <= pace.due:
            pace.answered(answer - 0.03, answer)
            came, answer = answer, answer + PERIOD + rng.uniform(-jitter, jitter)
            waited.append(pace.due - came)
        due.append(pace.next(pace.due))
    assert np.median(waited[-20:]) == pytest.approx(SPARE * PERIOD, abs=0.001 + 2 * jitter)
    np.testing.assert_allclose(np.diff(due), PERIOD, atol=FARTHEST * PERIOD + 1e-9)


def test_answers_that_take_longer_than_a_step_do_not_move_it():
    pace = Pace(PERIOD, 0.0)
    for step in range(20):
        pace.answered(observed=pace.due - 0.35, now=pace.due - 0.07)
        assert pace.next(pace.due) == pytest.approx((step + 1) * PERIOD)


def test_what_was_missed_is_left_out():
    pace = Pace(PERIOD, 0.0)
    assert pace.next(0.0) == pytest.approx(0.1)
    assert pace.next(0.37) == pytest.approx(0.3)  # at once, late by less than a step
    assert pace.next(0.37) == pytest.approx(0.4)
