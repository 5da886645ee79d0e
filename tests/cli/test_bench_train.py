"""``moe-robot bench train``: what counts of runs beside each other."""

import pytest

from moe_robot.cli.bench.train import Spent, Tick, _spent
from moe_robot.types import UserError


def ticks(begin: float, *seconds: float) -> list[Tick]:
    """Steps that take so long, all of it processor time."""
    times = [begin + sum(seconds[:n]) for n in range(len(seconds) + 1)]
    return [Tick(3 + n, time, time - begin) for n, time in enumerate(times)]


def test_what_is_done_after_the_first_has_ended_does_not_count():
    early, late = ticks(10.0, 1.0, 1.0, 1.0), ticks(10.0, 1.5, 1.5, 0.5, 0.5)  # alone it is quicker
    assert _spent([early, late]) == [Spent(3, 3.0, 3.0), Spent(2, 3.0, 3.0)]


def test_too_short_a_run_is_said():
    with pytest.raises(UserError, match="give more --seconds"):
        _spent([ticks(10.0, 1.0), ticks(10.0, 2.0)])
