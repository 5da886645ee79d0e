"""Several data sets as one: shares by weight, selections, renamed features, and what is said when they do not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_episodes import FEATURES, length, vectors, write_dataset

from moe_robot.cli import main
from moe_robot.data.loader import open_dataset
from moe_robot.data.match import FeaturesDiffer
from moe_robot.data.mixture import Mixture, open_data
from moe_robot.data.record import EpisodeBuilder
from moe_robot.data.sampler import BLOCK, batch_indices, block_quotas, mixture_indices
from moe_robot.data.selection import parse_episodes
from moe_robot.data.statistics import vector_statistics
from moe_robot.data.store import DatasetWriter
from moe_robot.types import Features, UserError

FOREIGN = Features({"laptop": (24, 32), "phone": (16, 16)}, ("pan", "y", "x"), ("dy", "dx"), 10)
RENAME = "{laptop: front, phone: wrist, pan: z}"


def foreign_vectors(episode):
    rng = np.random.default_rng(77 + episode)
    return rng.normal(5, 2, size=(length(episode), 3)), rng.normal(size=(length(episode), 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets: ours, and one of another robot whose cameras and joints are called and ordered otherwise."""
    root = tmp_path_factory.mktemp("mixture")
    write_dataset(root / "ours", 22)
    writer = DatasetWriter(root / "theirs", FOREIGN, {})
    for episode in range(4):
        builder = EpisodeBuilder(FOREIGN)
        for state, action in zip(*foreign_vectors(episode), strict=True):
            pictures = {camera: np.full((*size, 3), 50 * episode, np.uint8) for camera, size in FOREIGN.cameras.items()}
            builder.add(pictures, state, action)
        writer.append(builder.finish("a foreign task"))
    writer.commit()
    return root


def mixture(folder, *parts):
    path = folder / "mixture.yaml"
    path.write_text("\n".join(f"- {{{part}}}" for part in parts))
    return open_data(path, 3, split="all")


@pytest.fixture
def both(folder):
    return mixture(folder, "data: ours, weight: 3", f"data: theirs, weight: 1, rename: {RENAME}")


def test_every_batch_has_its_share_of_each_part(both):
    drawn = np.concatenate([both.draw(0, step, 50) for step in range(20)])
    assert (drawn < len(both.parts[0])).mean() == 0.75


def test_without_weights_every_frame_is_alike(folder):
    both = mixture(folder, "data: ours", f"data: theirs, rename: {RENAME}")
    assert both.weights == tuple(len(part) for part in both.parts)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    st.integers(0, 2**31),
)
def test_a_mixture_goes_through_each_part_in_permutations_with_its_share_of_every_block(sizes, weights, seed):
    weights = weights[: len(sizes)]
    stream = mixture_indices(seed, 0, BLOCK, sizes, weights)
    quotas, start = block_quotas(tuple(weights)), 0
    assert sum(quotas) == BLOCK
    for size, quota, weight in zip(sizes, quotas, weights, strict=True):
        mine = [i - start for i in stream if start <= i < start + size]
        assert len(mine) == quota
        assert abs(quota - BLOCK * weight / sum(weights)) < len(sizes) or quota == 1
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
        start += size


def test_a_draw_does_not_depend_on_the_draws_before_and_ranks_share_a_batch():
    def draw(step, batch_size=8, **ranks):
        return mixture_indices(5, step, batch_size, [30, 70], [1, 1], **ranks).tolist()

    forward = [draw(step) for step in range(200)]
    assert [draw(step) for step in reversed(range(200))] == forward[::-1]
    together = [*draw(3, 8, rank=0, world_size=2), *draw(3, 8, rank=1, world_size=2)]
    assert together == draw(3, 16)


def test_entries_and_cameras_of_another_robot_come_under_our_names_and_in_our_order(both):
    n = len(both.parts[0])
    states, actions = foreign_vectors(0)
    batch = both.batch([n, 0, n + 1])
    np.testing.assert_array_equal(batch["observation.state"][0], states[0, [2, 1, 0]].astype(np.float32))
    np.testing.assert_array_equal(batch["observation.state"][1], vectors(0)[0][0].astype(np.float32))
    np.testing.assert_array_equal(batch["action"][2, 0], actions[1, [1, 0]].astype(np.float32))
    assert batch["task"] == ["a foreign task", "sentence 0", "a foreign task"]
    assert {key for key in batch if "images" in key} == {"observation.images.front", "observation.images.wrist"}
    assert both.features == FEATURES


def test_statistics_are_those_of_all_frames_of_all_parts(both):
    ours = np.concatenate([vectors(e)[0] for e in range(22)])
    theirs = np.concatenate([foreign_vectors(e)[0] for e in range(4)])[:, [2, 1, 0]]
    expected = vector_statistics(np.concatenate([ours, theirs]).astype(np.float32))
    got = both.statistics["observation.state"]
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-6)
    np.testing.assert_allclose(got.quantiles["q01"], expected.quantiles["q01"], rtol=1e-6)
    frames = [both.batch([i])["observation.images.wrist"][0] for i in range(len(both))]
    np.testing.assert_allclose(
        both.statistics["observation.images.wrist"].std, np.std(np.stack(frames) / 255, axis=(0, 1, 2)), rtol=1e-6
    )


def test_a_part_may_be_a_few_tasks_and_episodes_and_cameras(folder):
    part = "data: ours, tasks: [task1], episodes: '0-5,9', cameras: [wrist]"
    chosen = mixture(folder, part).parts[0]
    assert chosen.episodes.index.tolist() == [1, 3, 5, 9]
    assert list(chosen.features.cameras) == ["wrist"]
    assert {key for key in chosen.batch([0]) if "images" in key} == {"observation.images.wrist"}


def test_cameras_that_were_left_out_are_not_decoded_and_come_later(folder):
    write_dataset(folder / "lean", 3)
    open_dataset(folder / "lean", 2, cameras=["wrist"], split="all").batch([0])
    cached = folder / "lean/.cache"
    assert [path.name for path in cached.rglob("*.uint8")] == ["wrist.uint8"]
    open_dataset(folder / "lean", 2, split="all").batch([0])
    assert sorted(path.name for path in cached.rglob("*.uint8")) == ["front.uint8", "wrist.uint8"]


def test_parts_without_a_held_out_episode_are_not_in_validation(folder):
    write_dataset(folder / "long", 44)
    path = folder / "validation.yaml"
    path.write_text(f"- data: long\n- data: theirs\n  rename: {RENAME}")
    held = open_data(path, 2, split="validation")
    assert isinstance(held, Mixture)
    assert [part.directory.name for part in held.parts] == ["long"]


def test_a_single_data_set_is_drawn_from_as_ever(folder):
    dataset = open_data(folder / "ours", 2)
    assert dataset.draw(3, 7, 16).tolist() == batch_indices(3, 7, 16, len(dataset)).tolist()


def test_what_does_not_fit_is_told_in_one_line_and_as_a_table(folder):
    with pytest.raises(FeaturesDiffer) as caught:
        mixture(folder, "data: ours", "data: theirs, rename: {laptop: front}")
    said = str(caught.value)
    assert "camera 'wrist 16x16' is missing; camera 'phone 16x16' is one too many" in said
    assert "\n" not in said
    table = {(row.kind, row.wanted, row.found, row.fits) for row in caught.value.rows}
    assert ("camera", "front 24x32", "front 24x32", True) in table
    assert ("state", "z", "", False) in table
    assert ("state", "", "pan", False) in table
    assert ("action", "dx", "dx", True) in table


def test_the_command_shows_the_table(folder, tmp_path, capsys):
    (folder / "bad.yaml").write_text("- data: ours\n- data: theirs")
    arguments = ["--data", str(folder / "bad.yaml"), "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["train", *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("phone 16x16" in line and "does not fit" in line for line in lines)
    assert "does not fit" in lines[-1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{data: ours}", "expected a YAML list of parts"),
        ("- {dat: ours}", "each with data: FOLDER"),
        ("- {data: ours, wieght: 2}", "unknown key of a part in .* 'wieght': did you mean weight"),
        ("- {data: ours, weight: -1}", "weight -1 of ours: expected a number above 0"),
        ("- {data: ours, weight: 1}\n- {data: ours}", "weigh all or none"),
        ("- {data: ours, cameras: [frnt]}", "unknown camera of .*ours 'frnt': did you mean front"),
        ("- {data: ours, episodes: 0-x}", "episodes '0-x': expected numbers and ranges"),
        ("- {data: ours, episodes: 9-99}", "ours has no episode 99: it has 22, 0 to 21"),
        ("- {data: ours, rename: {forehead: front}}", "unknown name to rename in .*ours 'forehead'"),
        ("- {data: ours, rename: {wrist: front}}", "two of the cameras of .*ours would be called 'front'"),
        ("- {data: nowhere}", "no data set at .*nowhere"),
        ("- [", "is no mixture"),
    ],
)
def test_bad_mixtures_are_one_line(folder, parts, message):
    (folder / "broken.yaml").write_text(parts)
    with pytest.raises(UserError, match=message) as caught:
        open_data(folder / "broken.yaml", 2)
    assert "\n" not in str(caught.value)


def test_a_whole_feature_can_be_renamed(folder):
    renamed = open_dataset(folder / "ours", 2, rename={"observation.state": "action", "action": "observation.state"})
    assert renamed.features.state_names == ("dx", "dy")
    np.testing.assert_array_equal(renamed.batch([0])["observation.state"][0], vectors(0)[1][0].astype(np.float32))


def test_ranges_of_episodes_are_read_with_both_ends():
    assert [list(part) for part in parse_episodes("3, 5-7")] == [[3], [5, 6, 7]]
