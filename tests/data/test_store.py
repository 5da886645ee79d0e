import errno
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sample_episodes import FEATURES, fingerprints, images, length, record, vectors, write_dataset

from moe_robot.data import store
from moe_robot.data.durable import disk_errors, only_writer
from moe_robot.data.layout import read_episodes, read_info, read_tasks
from moe_robot.data.loader import open_dataset
from moe_robot.data.record import EpisodeBuilder, EpisodeRecord
from moe_robot.data.statistics import load_statistics, vector_statistics
from moe_robot.data.store import DatasetWriter
from moe_robot.types import UserError

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """A few episodes fill a data file, so that every test crosses files."""
    monkeypatch.setattr(store, "FILE_BYTES", 60_000)


def test_what_is_written_is_what_lerobot_writes(tmp_path):
    """Same files, keys, columns, types as in a data set written by lerobot itself, but for video and our additions."""
    write_dataset(tmp_path, 4)
    ours, theirs = (json.loads((d / "meta/info.json").read_text()) for d in (tmp_path, SAMPLE))
    assert set(theirs) == set(ours) - {"moe_robot"}
    for key in ("codebase_version", "chunks_size", "data_path"):
        assert ours[key] == theirs[key]
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert ours["features"][key] == theirs["features"][key]
    assert ours["splits"] == {"train": "0:4"}

    def schema(directory, name):
        return {field.name: field.type for field in pq.read_schema(directory / name)}

    ours, theirs = (schema(d, "data/chunk-000/file-000.parquet") for d in (tmp_path, SAMPLE))
    vectors_and_images = {"observation.state", "action", "observation.images.front", "observation.images.wrist"}
    assert {k: v for k, v in ours.items() if k not in vectors_and_images} == {
        k: v for k, v in theirs.items() if k not in vectors_and_images
    }
    assert str(ours["action"]) == "fixed_size_list<element: float>[2]"
    ours, theirs = (schema(d, "meta/episodes/chunk-000/file-000.parquet") for d in (tmp_path, SAMPLE))
    same = {k for k in theirs if "corner2" not in k}
    assert {k: v for k, v in ours.items() if k in same} == {k: v for k, v in theirs.items() if k in same}
    of_a_camera = "stats/observation.images.{}/mean".format
    assert ours[of_a_camera("front")] == theirs[of_a_camera("corner2")]
    ours, theirs = (pq.read_schema(d / "meta/tasks.parquet") for d in (tmp_path, SAMPLE))
    assert ours.names == theirs.names
    assert json.loads(ours.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]


def test_frames_come_back_without_loss_and_in_true_colours(tmp_path):
    write_dataset(tmp_path, 3)
    rows = pq.read_table(tmp_path / "data").sort_by("index").to_pylist()
    for episode in range(3):
        mine = [row for row in rows if row["episode_index"] == episode]
        states, actions = vectors(episode)
        assert [row["frame_index"] for row in mine] == list(range(length(episode)))
        np.testing.assert_array_equal([row["observation.state"] for row in mine], states.astype(np.float32))
        np.testing.assert_array_equal([row["action"] for row in mine], actions.astype(np.float32))
        for frame, row in enumerate(mine):
            for camera, expected in images(episode, frame).items():
                stored = np.asarray(Image.open(io.BytesIO(row[f"observation.images.{camera}"]["bytes"])))
                np.testing.assert_array_equal(stored, expected)


def test_statistics_are_those_of_all_frames(tmp_path):
    statistics = load_statistics(write_dataset(tmp_path, 11))
    states = np.concatenate([vectors(e)[0] for e in range(11)]).astype(np.float32)
    expected = vector_statistics(states)
    np.testing.assert_allclose(statistics["observation.state"].std, expected.std, rtol=1e-12)
    np.testing.assert_allclose(statistics["observation.state"].quantiles["q10"], expected.quantiles["q10"])
    pixels = np.stack([images(e, f)["wrist"] for e in range(11) for f in range(length(e))]) / 255
    np.testing.assert_allclose(statistics["observation.images.wrist"].mean, pixels.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(statistics["observation.images.wrist"].std, pixels.std(axis=(0, 1, 2)))
    assert statistics["timestamp"].max == pytest.approx(0.7)


def test_stopping_after_every_episode_gives_the_same_bits(tmp_path):
    at_once = fingerprints(write_dataset(tmp_path / "once", 17))
    for episodes in range(1, 18):
        write_dataset(tmp_path / "slowly", episodes)
    assert fingerprints(tmp_path / "slowly") == at_once
    assert len([name for name in at_once if name.startswith("data/")]) > 2


def test_every_commit_leaves_a_readable_data_set(tmp_path):
    writer = DatasetWriter(tmp_path, FEATURES, {})
    for episode in range(9):
        writer.append(record(episode))
        writer.commit()
        dataset = open_dataset(tmp_path, 2, split="all")
        assert len(dataset.episodes) == episode + 1
        assert len(dataset) == sum(length(e) for e in range(episode + 1))


@pytest.mark.parametrize("written", range(1, 5))
def test_a_kill_inside_a_commit_leaves_the_state_before(tmp_path, written):
    """A commit replaces five files, info.json last: with any number of them replaced, readers see the old state."""
    before, after = write_dataset(tmp_path / "before", 8), write_dataset(tmp_path / "after", 12)
    order = ("data", "meta/episodes", "meta/tasks.parquet", "meta/stats.json")
    for name in order[:written]:
        copy = shutil.copytree if (after / name).is_dir() else shutil.copy
        copy(after / name, before / name, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
    dataset = open_dataset(before, 2, split="all")
    assert len(dataset.episodes) == 8
    np.testing.assert_array_equal(dataset.batch([0])["observation.images.front"][0], images(0, 0)["front"])
    write_dataset(before, 12)  # and going on from there loses nothing
    assert {k: v for k, v in fingerprints(before).items() if not k.startswith(".")} == fingerprints(after)


@pytest.mark.parametrize("codec", ["png", "h264"])
@pytest.mark.parametrize("full_at", ["_write_data", "_write_episodes", "_write_tasks"])
def test_a_disk_that_is_full_during_a_commit_changes_nothing(tmp_path, monkeypatch, full_at, codec):
    before = fingerprints(write_dataset(tmp_path, 3, codec))

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, full_at, no_space)
        with pytest.raises(UserError, match=r"no space left for .*what was finished is kept"), disk_errors(tmp_path):
            write_dataset(tmp_path, 5, codec)
    assert fingerprints(tmp_path) == before
    write_dataset(tmp_path, 5, codec)  # with room again it goes on
    assert len(open_dataset(tmp_path, 2, split="all").episodes) == 5


def test_another_data_set_in_the_directory_is_refused_by_name(tmp_path):
    write_dataset(tmp_path, 2)
    with pytest.raises(UserError, match="environment 'samples', expected 'other'"):
        DatasetWriter(tmp_path, FEATURES, {"environment": "other"})
    other = type(FEATURES)({"front": (24, 32)}, FEATURES.state_names, FEATURES.action_names, 10)
    with pytest.raises(UserError, match="camera 'wrist' is missing"):
        DatasetWriter(tmp_path, other, {"environment": "samples"})


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and no data set \(it holds 'thesis.tex'\)"):
        DatasetWriter(tmp_path, FEATURES, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_only_one_process_writes(tmp_path):
    with (
        only_writer(tmp_path),
        pytest.raises(UserError, match="being written by another process"),
        only_writer(tmp_path),
    ):
        pass
    with only_writer(tmp_path):
        pass


def test_an_episode_waits_in_a_file_without_change(tmp_path):
    episode = record(5)
    episode.save(tmp_path / "5.parquet")
    loaded = EpisodeRecord.load(tmp_path / "5.parquet")
    assert loaded.frames.equals(episode.frames)
    assert (loaded.sentence, dict(loaded.extras)) == (episode.sentence, dict(episode.extras))
    for key, statistics in episode.statistics.items():
        assert loaded.statistics[key].mean.tolist() == statistics.mean.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "no image of camera 'front'"),
        (
            {"images": {"front": np.zeros((3, 3, 3), np.uint8), "wrist": np.zeros((16, 16, 3), np.uint8)}},
            "expected uint8",
        ),
        ({"state": np.array([0.0, np.nan, 0.0])}, "observation.state entry 'y' is not finite"),
        ({"action": np.zeros(3)}, r"action has shape \(3,\), expected \(2,\)"),
    ],
)
def test_a_bad_frame_is_refused_by_name(change, message):
    frame = {"images": images(0, 0), "state": np.zeros(3), "action": np.zeros(2), **change}
    with pytest.raises(UserError, match=message):
        EpisodeBuilder(FEATURES).add(**frame)


def test_meta_reads_back(tmp_path):
    write_dataset(tmp_path, 5)
    info = read_info(tmp_path)
    assert info.features == FEATURES
    assert read_tasks(tmp_path) == ("sentence 0", "sentence 1", "sentence 2")
    table = read_episodes(tmp_path, info)
    assert table["length"].to_pylist() == [length(e) for e in range(5)]
    assert table["env_task"].to_pylist() == [f"task{e % 2}" for e in range(5)]
    assert table["tasks"].to_pylist()[4] == ["sentence 1"]
