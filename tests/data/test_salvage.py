"""What a killed recorder left is found again: footers of data files, episodes, their places in videos."""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_environment import run_lerobot
from sample_episodes import images, length, vectors, write_dataset

from moe_robot.data.examine import examine
from moe_robot.data.footer import with_footer
from moe_robot.data.loader import open_dataset
from moe_robot.data.repair import repair
from moe_robot.data.schema import IMAGE_TYPE

HERE = Path(__file__).parent
SCHEMA = pa.schema(
    [
        pa.field("picture", IMAGE_TYPE),
        pa.field("state", pa.list_(pa.field("element", pa.float32()), 5)),
        pa.field("done", pa.bool_()),
        pa.field("states", pa.list_(pa.field("element", pa.float64()), 3)),
        pa.field("index", pa.int64()),
    ]
)
ROWS = (30, 900, 1, 77)


def group(number):
    """An episode; the second one's columns are of several pages, some too various for their dictionaries."""
    rng, n = np.random.default_rng(number), ROWS[number]
    return pa.table(
        {
            "picture": [{"bytes": rng.bytes(2000), "path": None} for _ in range(n)],
            "state": rng.normal(size=(n, 5)).astype(np.float32).tolist(),
            "done": [i == n - 1 for i in range(n)],
            "states": rng.normal(size=(n, 3)).tolist(),
            "index": list(range(n)),
        },
        schema=SCHEMA,
    )


@pytest.fixture(scope="module")
def written():
    """A file as LeRobot's recorder writes it, and where each of its row groups ends."""
    file, ends = io.BytesIO(), []
    with pq.ParquetWriter(file, SCHEMA, compression="snappy", use_dictionary=True) as writer:
        for number in range(len(ROWS)):
            writer.write_table(group(number))
            ends.append(file.tell())
    return file.getvalue(), ends


@pytest.mark.parametrize("groups", range(len(ROWS) + 1))
@pytest.mark.parametrize("beyond", [0, 1, 700])
def test_every_row_group_that_is_complete_is_read_again(written, groups, beyond):
    content, ends = written
    cut = ([4, *ends][groups] + beyond) if groups < len(ROWS) else ends[-1] + 10 * beyond
    salvaged, rows = with_footer(content[:cut], SCHEMA)
    there = pq.read_table(io.BytesIO(salvaged))
    assert rows == there.num_rows == sum(ROWS[:groups])
    if groups:
        assert there.equals(pa.concat_tables([group(i) for i in range(groups)]))


def test_a_recording_that_lerobot_lost_comes_back(tmp_path):
    done = repair(HERE / "lerobot_v3_crashed", tmp_path / "some/new")
    assert (done.kept, done.lost) == (3, ())
    assert "had no footer (its writer was killed): 150 frames of it were found again" in done.notes[0]
    data = open_dataset(tmp_path / "some/new", 4, split="all")
    assert (data.episodes.stop - data.episodes.start).tolist() == [50, 50, 50]
    assert data.batch([149])["action"].shape == (1, 4, 4)
    assert examine(tmp_path / "some/new").bad_episodes == set()
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["new"]


def test_places_in_videos_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_robot.data.store.FILE_BYTES", 6_000)  # several videos per camera
    data = write_dataset(tmp_path / "data", 12, "h264")
    assert len(list(data.rglob("*.mp4"))) > 4
    shutil.rmtree(data / "meta/episodes")
    last = sorted(data.glob("videos/*front/*/*.mp4"))[-1]
    last.write_bytes(last.read_bytes()[:200])
    done = repair(data, tmp_path / "new")
    assert 0 < done.kept < 12
    assert done.lost == tuple(range(done.kept, 12))
    assert examine(tmp_path / "new", decode_videos=True).bad_episodes == set()
    batch = (new := open_dataset(tmp_path / "new", 2, split="all")).batch(np.arange(len(new)))
    for at, (episode, frame) in enumerate((e, f) for e in range(done.kept) for f in range(length(e))):
        np.testing.assert_array_equal(batch["action"][at, 0], vectors(episode)[1][frame].astype(np.float32))
        difference = batch["observation.images.wrist"][at].astype(float) - images(episode, frame, smooth=True)["wrist"]
        assert np.abs(difference).mean() < 5


@pytest.mark.full
@pytest.mark.parametrize("kind", ["image", "libsvtav1"])
def test_what_the_real_lerobot_had_saved_when_it_was_killed_comes_back(tmp_path, kind):
    run_lerobot([{"write": str(tmp_path / "whole"), "kind": kind}])
    run_lerobot([{"write": str(tmp_path / "killed"), "kind": kind, "die": "yes"}])
    done = repair(tmp_path / "killed", tmp_path / "new")
    assert (done.kept, done.lost) == (4, ())
    new = open_dataset(tmp_path / "new", 2, split="all")
    whole = open_dataset(tmp_path / "whole", 2, split="all", episodes="0-3")
    assert len(new) == len(whole) == 12 + 7 + 19 + 4
    ours, theirs = (data.batch(np.arange(len(data))) for data in (new, whole))
    assert ours["task"] == theirs["task"]
    for key in set(theirs) - {"task", "task_name"}:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
