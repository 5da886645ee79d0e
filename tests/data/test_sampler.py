import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_robot.data.sampler import batch_indices


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 10**6))
def test_every_epoch_shows_every_frame_once(n, batch_size, seed):
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([batch_indices(seed, step, batch_size, n) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(1, 4), st.integers(0, 50))
def test_ranks_together_see_what_one_rank_with_their_batches_sees(world_size, step):
    alone = batch_indices(7, step, 6 * world_size, 100)
    together = [batch_indices(7, step, 6, 100, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(together).tolist() == alone.tolist()


def test_a_step_does_not_depend_on_the_steps_before():
    forward = [batch_indices(1, step, 16, 50).tolist() for step in range(20)]
    assert batch_indices(1, 13, 16, 50).tolist() == forward[13]
    assert [batch_indices(1, step, 16, 50).tolist() for step in reversed(range(20))] == forward[::-1]


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = batch_indices(0, 0, 50, 50), batch_indices(0, 1, 50, 50)
    assert first.tolist() != second.tolist() != sorted(second)
    assert batch_indices(1, 0, 50, 50).tolist() != first.tolist()


@pytest.mark.parametrize("bad", [{"rank": 2, "world_size": 2}, {"batch_size": 0}, {"n": 0}, {"step": -1}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match="bad sampler arguments"):
        batch_indices(**{"seed": 0, "step": 0, "batch_size": 4, "n": 10, **bad})
