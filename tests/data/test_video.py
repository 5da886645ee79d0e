"""Cameras stored as video: written, joined, gone on with, read through the cache and without it."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from sample_episodes import FEATURES, fingerprints, images, length, record, write_dataset

from moe_robot.data import store
from moe_robot.data.loader import open_dataset
from moe_robot.data.record import EpisodeBuilder, EpisodeRecord
from moe_robot.data.store import DatasetWriter
from moe_robot.data.video import cut_videos, join_videos
from moe_robot.types import Features, UserError

HERE = Path(__file__).parent
EPISODES = 7
CODEC_ERROR = 5.0
"""Mean difference per pixel that the codec may make, of 255. Any other frame differs by more than 10."""


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(store, "FILE_BYTES", 3_000)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "FILE_BYTES", 3_000)
    yield write_dataset(tmp_path_factory.mktemp("video") / "data", EPISODES, "h264")
    patch.undo()


@pytest.fixture
def own_copy(directory, tmp_path):
    return Path(shutil.copytree(directory, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache")))


def frame_numbers():
    return [(episode, frame) for episode in range(EPISODES) for frame in range(length(episode))]


def difference(got, expected):
    return np.abs(got.astype(float) - expected).mean()


@pytest.mark.parametrize("frames", ["cache", "stream"])
def test_every_frame_comes_back_to_the_codecs_tolerance(directory, frames, tmp_path):
    dataset = open_dataset(directory, 2, split="all", frames=frames, cache=tmp_path)
    numbers = frame_numbers()
    assert len(dataset) == len(numbers)
    order = np.random.default_rng(0).permutation(len(numbers))
    batch = dataset.batch(order)
    for row, at in enumerate(order):
        for camera, expected in images(*numbers[at], smooth=True).items():
            assert difference(batch[f"observation.images.{camera}"][row], expected) < CODEC_ERROR, (camera, numbers[at])
    assert difference(images(0, 0, smooth=True)["front"], images(0, 1, smooth=True)["front"]) > 10


@pytest.mark.parametrize("codec", ["png", "h264"])
def test_streamed_frames_are_those_of_the_cache(tmp_path, codec):
    write_dataset(tmp_path / "data", EPISODES, codec)
    cached, streamed = (open_dataset(tmp_path / "data", 2, split="all", frames=how) for how in ("cache", "stream"))
    streamed = pickle.loads(pickle.dumps(streamed))
    indices = np.random.default_rng(1).integers(0, len(cached), 40)
    a, b = cached.batch(indices), streamed.batch(indices)
    for camera in FEATURES.cameras:
        np.testing.assert_array_equal(a[f"observation.images.{camera}"], b[f"observation.images.{camera}"])
    np.testing.assert_array_equal(a["action"], b["action"])


def test_a_forked_worker_streams_what_its_parent_has_open(directory):
    code = (
        "import os, sys; from moe_robot.data.loader import open_dataset;"
        "d = open_dataset(sys.argv[1], 2, split='all', frames='stream'); d.batch([0, 9]); child = os.fork();"
        "child or os._exit(len(d.batch([1, 9])['task']));"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, directory], timeout=120, check=False).returncode == 2


def test_streaming_writes_nothing(own_copy):
    before = fingerprints(own_copy)
    open_dataset(own_copy, 2, frames="stream").batch([0, 5])
    assert fingerprints(own_copy) == before
    assert not (own_copy / ".cache").exists()


def test_lerobots_own_video_streams_as_it_is_cached(tmp_path):
    cached, streamed = (
        open_dataset(HERE / "lerobot_v3_sample", 2, split="all", cache=tmp_path, frames=how)
        for how in ("cache", "stream")
    )
    indices = [1999, 0, 199, 200, 777, 1400, 1401]
    key = "observation.images.corner2"
    np.testing.assert_array_equal(cached.batch(indices)[key], streamed.batch(indices)[key])


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_stopping_after_every_episode_gives_the_same_bits(tmp_path, codec):
    at_once = fingerprints(write_dataset(tmp_path / "once", EPISODES, codec))
    for episodes in range(1, EPISODES + 1):
        write_dataset(tmp_path / "slowly", episodes, codec)
    assert fingerprints(tmp_path / "slowly") == at_once
    assert len([name for name in at_once if "videos/observation.images.front" in name]) > 1


def test_what_is_written_is_what_lerobot_writes(directory):
    ours, theirs = (json.loads((d / "meta/info.json").read_text()) for d in (directory, HERE / "lerobot_v3_sample"))
    assert ours["video_path"] == theirs["video_path"]
    mine, other = ours["features"]["observation.images.front"], theirs["features"]["observation.images.corner2"]
    assert mine.keys() == other.keys()
    assert mine["info"].keys() == other["info"].keys()
    sizes = {"shape": [24, 32, 3], "info": {**other["info"], "video.height": 24, "video.width": 32}}
    assert mine == {**other, **sizes, "info": {**sizes["info"], "video.codec": "h264", "video.fps": 10}}
    video = next((directory / "videos/observation.images.front").rglob("*.mp4"))
    with av.open(str(video)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)


def test_joined_videos_are_cut_into_the_same_packets():
    videos = [record(episode, "h264").videos["front"] for episode in range(3)]
    lengths = [length(episode) for episode in range(3)]
    joined = join_videos(videos, 10)
    assert join_videos(cut_videos(joined, lengths), 10) == joined


def test_an_episode_waits_in_a_file_without_change(tmp_path):
    episode = record(5, "h264")
    episode.save(tmp_path / "5.parquet")
    loaded = EpisodeRecord.load(tmp_path / "5.parquet")
    assert loaded.frames.equals(episode.frames)
    assert loaded.videos == dict(episode.videos)


def test_going_on_with_another_codec_is_refused(own_copy):
    with pytest.raises(UserError, match=r"holds another data set \(frames are h264, expected png\)"):
        DatasetWriter(own_copy, FEATURES, {"environment": "samples"})


@pytest.mark.parametrize(
    ("codec", "size", "message"),
    [("h264", (25, 32), "25x32 pixels cannot be stored as video: expected even"), ("h246", (24, 32), "mean h264")],
)
def test_what_no_video_can_hold_is_refused(codec, size, message):
    with pytest.raises(UserError, match=message):
        EpisodeBuilder(Features({"front": size}, ("x",), ("dx",), 10), codec)


def test_a_vector_of_one_entry_is_a_plain_number_as_in_lerobot(tmp_path):
    features = Features({"front": (8, 8)}, ("x",), ("dx", "dy"), 10)
    writer = DatasetWriter(tmp_path, features, {})
    builder = EpisodeBuilder(features)
    for step in range(3):
        builder.add({"front": np.zeros((8, 8, 3), np.uint8)}, np.array([step]), np.zeros(2))
    writer.append(builder.finish("go"))
    writer.commit()
    assert open_dataset(tmp_path, 1, split="all").batch([2, 0])["observation.state"].tolist() == [[2.0], [0.0]]


def first_video(root):
    return sorted((root / "videos/observation.images.front").rglob("*.mp4"))[0]


@pytest.mark.parametrize("frames", ["cache", "stream"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"front/chunk-000/file-000\.mp4 is missing: it has frames of episode \d"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), r"file-000\.mp4 is damaged"),
        (lambda path: path.write_bytes(b""), r"file-000\.mp4 is damaged"),
        (
            lambda path: path.write_bytes(cut_videos(path.read_bytes(), [3])[0]),
            r"file-000\.mp4 has no frame at 0\.300 s: frame 3 of the 4 of episode 0 is missing",
        ),
    ],
)
def test_a_bad_video_is_one_line_that_names_file_and_episode(own_copy, damage, message, frames):
    damage(first_video(own_copy))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(own_copy, 2, split="all", frames=frames).batch(np.arange(len(frame_numbers())))
    assert "\n" not in str(caught.value)
