import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_episodes import FEATURES, images, length, vectors, write_dataset

from moe_robot.data import cache, store
from moe_robot.data.durable import write_json
from moe_robot.data.loader import open_dataset
from moe_robot.data.statistics import load_statistics, vector_statistics
from moe_robot.types import UserError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "FILE_BYTES", 60_000)
    yield write_dataset(tmp_path_factory.mktemp("set") / "data", 44)
    patch.undo()


@pytest.fixture
def own_copy(directory, tmp_path):
    return Path(shutil.copytree(directory, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache")))


def frame_numbers(episodes):
    return [(episode, frame) for episode in episodes for frame in range(length(episode))]


def test_a_batch_holds_each_frame_with_the_actions_that_follow(directory):
    dataset = open_dataset(directory, horizon=3, split="all")
    everything = frame_numbers(range(44))
    assert len(dataset) == len(everything)
    chosen = np.random.default_rng(0).permutation(len(everything))[:64]
    batch = dataset.batch(chosen)
    assert batch["observation.images.front"].shape == (64, 24, 32, 3)
    assert (batch["observation.state"].dtype, batch["action"].dtype) == (np.float32, np.float32)
    for row, number in enumerate(chosen):
        episode, frame = everything[number]
        states, actions = (values.astype(np.float32) for values in vectors(episode))
        for camera, image in images(episode, frame).items():
            np.testing.assert_array_equal(batch[f"observation.images.{camera}"][row], image)
        np.testing.assert_array_equal(batch["observation.state"][row], states[frame])
        assert batch["task"][row] == f"sentence {episode % 3}"
        for step in range(3):
            beyond = frame + step >= length(episode)
            assert batch["action_is_pad"][row, step] == beyond
            np.testing.assert_array_equal(batch["action"][row, step], actions[-1 if beyond else frame + step])


def test_every_twentieth_episode_of_a_task_is_held_out(directory):
    train, held, both = (open_dataset(directory, 2, split=split) for split in ("train", "validation", "all"))
    assert held.episodes.index.tolist() == [38, 39]  # the 20th of task0 (even numbers) and of task1
    assert sorted([*train.episodes.index, *held.episodes.index]) == both.episodes.index.tolist() == list(range(44))
    assert len(train) + len(held) == len(both)
    np.testing.assert_array_equal(held.batch([0])["observation.images.wrist"][0], images(38, 0)["wrist"])


def test_tasks_can_be_selected_and_statistics_follow_the_selection(directory):
    dataset = open_dataset(directory, 2, tasks=["task1"], split="all")
    assert set(dataset.episodes.task) == {"task1"}
    assert dataset.episodes.seed.tolist() == list(range(1, 44, 2))
    states = np.concatenate([vectors(e)[0] for e in range(1, 44, 2)]).astype(np.float32)
    expected = vector_statistics(states)
    got = dataset.statistics["observation.state"]
    np.testing.assert_allclose(got.mean, expected.mean)
    np.testing.assert_allclose(got.quantiles["q99"], expected.quantiles["q99"])
    pixels = np.stack([images(e, f)["front"] for e, f in frame_numbers(range(1, 44, 2))]) / 255
    np.testing.assert_allclose(dataset.statistics["observation.images.front"].std, pixels.std(axis=(0, 1, 2)))
    with pytest.raises(UserError, match="unknown task of the data set 'task2': did you mean task"):
        open_dataset(directory, 2, tasks=["task2"])


def test_what_is_known_about_the_data_set(directory):
    dataset = open_dataset(directory, 2, split="all")
    assert dataset.features == FEATURES
    assert dataset.tasks == ("sentence 0", "sentence 1", "sentence 2")
    assert dataset.provenance == {"environment": "samples"}


def test_frames_are_decoded_once(own_copy, monkeypatch):
    open_dataset(own_copy, 2).frames  # noqa: B018
    monkeypatch.setattr(cache, "decode_source", lambda *_: pytest.fail("decoded again"))
    again = open_dataset(own_copy, 2)
    np.testing.assert_array_equal(again.batch([0])["observation.images.front"][0], images(0, 0)["front"])


def test_changed_content_of_the_same_size_and_time_is_noticed(own_copy):
    first = open_dataset(own_copy, 2)
    first.frames  # noqa: B018
    open_dataset(own_copy, 2)  # remembers the hashes of the files
    path = next((own_copy / "data").rglob("*.parquet"))
    before, data = path.stat(), bytearray(path.read_bytes())
    at = data.find(b"IDAT") + 200
    data[at] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert open_dataset(own_copy, 2).content_hash != first.content_hash


def test_a_grown_data_set_gets_a_new_cache_and_the_old_one_goes(own_copy, monkeypatch):
    monkeypatch.setattr(store, "FILE_BYTES", 60_000)
    open_dataset(own_copy, 2).frames  # noqa: B018
    write_dataset(own_copy, 46)
    dataset = open_dataset(own_copy, 2, split="all")
    last = dataset.batch([len(dataset) - 1])
    np.testing.assert_array_equal(last["observation.images.front"][0], images(45, length(45) - 1)["front"])
    assert [path.name for path in (own_copy / ".cache").iterdir() if path.is_dir()] == [dataset.content_hash]


def test_readers_that_begin_at_the_same_moment_write_one_after_the_other(own_copy, monkeypatch):
    inside, most = [], []

    def slow(path, content):
        inside.append(path)
        most.append(len(inside))
        time.sleep(0.02)
        write_json(path, content)
        inside.pop()

    monkeypatch.setattr(cache, "write_json", slow)
    (own_copy / ".cache").mkdir()
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_dataset(own_copy, 2).content_hash, range(4)))
    assert len(set(opened)) == 1
    assert max(most) == 1


def test_the_content_hash_is_the_same_for_a_copy(directory, own_copy):
    assert open_dataset(directory, 2).content_hash == open_dataset(own_copy, 2).content_hash


def test_two_processes_may_open_at_once(own_copy):
    code = (
        "import sys, numpy as np; from moe_robot.data.loader import open_dataset;"
        "d = open_dataset(sys.argv[1], 2, split='all'); print(int(np.asarray(d.frames['front']).sum()))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, own_copy], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    sums = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sums == [sum(int(images(e, f)["front"].sum()) for e, f in frame_numbers(range(44)))] * 2


def test_a_worker_process_does_not_get_the_frames_pickled(directory):
    dataset = open_dataset(directory, 2, split="all")
    dataset.frames  # noqa: B018
    pickled = pickle.dumps(dataset)
    assert len(pickled) < sum(frames.nbytes for frames in dataset.frames.values()) / 4
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(
        copy.batch([5])["observation.images.wrist"], dataset.batch([5])["observation.images.wrist"]
    )


def test_too_little_disk_for_the_cache_is_said_before_decoding(own_copy, monkeypatch):
    usage = shutil.disk_usage(own_copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"the frame cache needs 0\.00 GB in .* free some space"):
        open_dataset(own_copy, 2).frames  # noqa: B018


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit_info(root, **changes):
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def put_nan(root):
    path = sorted((root / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    rows = table["observation.state"].to_pylist()
    rows[3][1] = float("nan")
    at = table.schema.get_field_index("observation.state")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type)), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "no data set at .* expected meta/info.json"),
        (lambda root: (root / "meta/info.json").write_text("{"), r"info\.json is broken"),
        (lambda root: edit_info(root, codebase_version="v2.1"), r"is LeRobot v2\.1: expected v3\.0"),
        (lambda root: edit_info(root, total_episodes=50), "meta/episodes lists 44 episodes: meta/info.json says 50"),
        (lambda root: edit_info(root, total_frames=9), r"hold \d+ frames: meta/info\.json says 9"),
        (lambda root: (root / "meta/tasks.parquet").unlink(), r"tasks\.parquet is missing"),
        (lambda root: (root / "data/chunk-000/file-001.parquet").unlink(), r"file-001\.parquet is missing"),
        (
            lambda root: truncate(root / "data/chunk-000/file-001.parquet"),
            r"file-001\.parquet is damaged .*; episodes \d+ to \d+ are in it; inspect --repair keeps the rest",
        ),
        (put_nan, r"file-000\.parquet: observation\.state entry 'y' is not finite at frame 3 of episode 0"),
    ],
)
def test_damage_is_one_line_that_names_the_file(own_copy, damage, message):
    damage(own_copy)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(own_copy, 2)
    assert "\n" not in str(caught.value)


def test_an_image_that_does_not_decode_is_named(own_copy):
    path = own_copy / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"\x89PNK", 1))
    with pytest.raises(UserError, match=r"file-000\.parquet, frame 0, camera 'front': the image does not decode"):
        open_dataset(own_copy, 2).frames  # noqa: B018
    assert not list((own_copy / ".cache").rglob("*.uint8*"))


def test_a_data_set_written_by_lerobot_opens(tmp_path):
    dataset = open_dataset(HERE / "lerobot_v3_sample", 16, split="all", cache=tmp_path)
    assert (len(dataset), len(dataset.episodes), dataset.features.fps) == (2000, 10, 80)
    assert dataset.tasks == ("push the puck to the goal",)
    assert dataset.features.cameras == {"corner2": (96, 96)}
    frames = dataset.batch(range(0, 2000, 4))["observation.images.corner2"] / 255
    measured = dataset.statistics["observation.images.corner2"]  # lerobot's own deviations are wrong
    np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), measured.mean, atol=0.003)
    np.testing.assert_allclose(frames.std(axis=(0, 1, 2)), measured.std, atol=0.003)
    theirs = load_statistics(HERE / "lerobot_v3_sample")["observation.images.corner2"]
    np.testing.assert_allclose(theirs.mean, measured.mean, atol=0.01)  # before the codec
    assert (theirs.std < 0.01).all()


def test_a_recording_that_lerobot_lost_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"meta/episodes is missing: meta/info\.json says 3 episodes"):
        open_dataset(HERE / "lerobot_v3_crashed", 16, cache=tmp_path)


def test_data_imports_no_torch():
    code = "import sys, moe_robot.data.collect, moe_robot.data.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
