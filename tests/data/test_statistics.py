from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_robot.data.statistics import (
    QUANTILES,
    ImageStatistics,
    combine,
    from_columns,
    load_statistics,
    to_columns,
    vector_statistics,
)
from moe_robot.types import UserError

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"


def assert_same(a, b, quantiles=True, atol=1e-12):
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=atol)
    assert a.count == b.count
    for name in QUANTILES if quantiles else ():
        np.testing.assert_allclose(a.quantiles[name], b.quantiles[name], rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_statistics_of_parts_combine_to_those_of_the_whole(sizes, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal() * 5, 2, size=(size, 3)) for size in sizes]
    assert_same(combine([vector_statistics(part) for part in parts]), vector_statistics(np.concatenate(parts)), False)


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_image_statistics_are_those_of_all_pixels(n, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (n, 5, 7, 3)).astype(np.uint8)
    running = ImageStatistics()
    running.add(frames[:1])
    running.add(frames[1:])
    expected = vector_statistics(frames.reshape(-1, 3) / 255.0)
    got = running.statistics()
    assert got.count == n
    assert_same(got, type(got)(**{**expected.__dict__, "count": n}))


def test_a_black_and_a_white_frame_have_half_grey_as_mean():
    running = ImageStatistics()
    running.add([np.zeros((4, 4, 3), np.uint8)])
    running.add([np.full((4, 4, 3), 255, np.uint8)])
    got = running.statistics()
    assert got.mean.tolist() == got.std.tolist() == [0.5, 0.5, 0.5]
    assert (got.min.tolist(), got.max.tolist()) == ([0, 0, 0], [1, 1, 1])


@pytest.mark.parametrize("image", [True, False])
def test_statistics_survive_the_way_to_disk(image):
    statistics = vector_statistics(np.random.default_rng(0).normal(size=(50, 3)))
    columns = to_columns(statistics, image)
    assert np.shape(columns["mean"]) == ((3, 1, 1) if image else (3,))
    assert_same(from_columns(columns), statistics)


def test_lerobots_own_statistics_are_read_and_agree_with_ours_on_its_data():
    theirs = load_statistics(SAMPLE)
    assert theirs["observation.images.corner2"].mean.shape == (3,)
    data = pq.read_table(SAMPLE / "data/chunk-000/file-000.parquet")
    for key in ("observation.state", "action"):
        ours = vector_statistics(np.array(data[key].to_pylist()))
        assert_same(ours, theirs[key], quantiles=False, atol=1e-7)  # LeRobot sums in float32


def test_missing_or_broken_statistics_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"stats\.json is missing"):
        load_statistics(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/stats.json").write_text('{"action": {"mean": [1]}}')
    with pytest.raises(UserError, match=r"stats\.json is broken"):
        load_statistics(tmp_path)
