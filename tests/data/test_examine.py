"""What `inspect` says of a data set, damaged or whole, and what repair brings back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_episodes import FEATURES, fingerprints, images, length, record, vectors, write_dataset

from moe_robot.cli import main
from moe_robot.data import store
from moe_robot.data.examine import examine
from moe_robot.data.examine_page import page
from moe_robot.data.loader import open_dataset
from moe_robot.data.record import EpisodeBuilder
from moe_robot.data.repair import repair
from moe_robot.data.statistics import load_statistics, vector_statistics
from moe_robot.data.store import DatasetWriter
from moe_robot.types import UserError

HERE = Path(__file__).parent
EPISODES = 12


@pytest.fixture(scope="module", params=["png", "h264"])
def whole(request, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(store, "FILE_BYTES", 60_000 if request.param == "png" else 6_000)
    yield write_dataset(tmp_path_factory.mktemp("whole") / "data", EPISODES, request.param)
    patch.undo()


@pytest.fixture
def own_copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def problems(directory, kind):
    return [problem for problem in examine(directory, decode_videos=True).problems if problem.kind == kind]


def change(root, column, edit, file="chunk-000/file-000"):
    """Edit a column of a data file: ``edit`` gets its rows as lists."""
    path = root / f"data/{file}.parquet"
    table = pq.read_table(path)
    rows = table[column].to_pylist()
    edit(rows)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type)), path)


def test_a_whole_data_set_has_no_problems_and_is_told_as_it_is(whole):
    found = examine(whole, decode_videos=True)
    assert found.problems == []
    assert found.summary["episodes"] == EPISODES
    assert found.lengths == [length(e) for e in range(EPISODES)]
    assert {row["task"]: row["episodes"] for row in found.tasks} == {"task0": 6, "task1": 6}
    entries = {(row["feature"], row["name"]): row for row in found.entries}
    states = np.concatenate([vectors(e)[0] for e in range(EPISODES)]).astype(np.float32)
    assert entries["observation.state", "y"]["max"] == pytest.approx(states[:, 1].max())
    assert sum(entries["action", "dx"]["histogram"]) == len(states)
    assert json.loads(json.dumps(found.to_json()))["summary"]["fps"] == 10


def test_lerobots_own_sample_has_no_problems():
    assert examine(HERE / "lerobot_v3_sample", decode_videos=True).problems == []


def recorded(tmp_path, edit):
    writer = DatasetWriter(tmp_path / "made", FEATURES, {})
    for episode in range(4):
        builder = EpisodeBuilder(FEATURES)
        rng = np.random.default_rng(episode)
        for frame in range(20):
            state, action = edit(episode, frame, rng.normal(size=3), rng.normal(size=2))
            builder.add(images(0, frame), state, action)
        writer.append(builder.finish("go"))
    writer.commit()
    return tmp_path / "made"


def test_a_joint_that_never_moves_is_named(tmp_path):
    made = recorded(tmp_path, lambda e, f, state, action: (np.array([*state[:2], 0.7]), action))
    (problem,) = problems(made, "dead")
    assert "observation.state entry 'z' never moves: it is 0.7 in every frame" in problem.message


def test_an_action_at_its_end_most_of_the_time_is_saturated_and_a_switch_is_not(tmp_path):
    made = recorded(
        tmp_path, lambda e, f, state, action: (state, np.array([np.sign(action[0]), np.clip(3 * action[1], -1, 1)]))
    )
    (problem,) = problems(made, "saturated")
    assert "action entry 'dy'" in problem.message


def test_the_same_episode_twice_is_named(tmp_path):
    writer = DatasetWriter(tmp_path / "made", FEATURES, {})
    for episode in (0, 1, 2, 1):
        writer.append(record(episode))
    writer.commit()
    (problem,) = problems(tmp_path / "made", "duplicate")
    assert problem.episodes == (1, 3)


def test_a_gap_in_the_time_stamps_is_named(own_copy):
    def skip(rows):
        rows[2:4] = [rows[2] + 0.5, rows[3] + 0.5]  # of episode 0, which has four frames

    change(own_copy, "timestamp", skip)
    (problem,) = problems(own_copy, "time")
    assert problem.episodes == (0,)
    assert "1 gaps, the first after frame 1, of 6.00 steps" in problem.message


def test_an_action_outside_of_the_stated_range_is_named(own_copy):
    change(own_copy, "action", lambda rows: rows[1].__setitem__(0, 99.0))
    (problem,) = problems(own_copy, "range")
    assert "action entry 'dx' is outside the range" in problem.message
    assert problem.message.endswith("in 1 frames")
    assert problem.episodes == (0,)


def test_cameras_of_another_rate_are_named(tmp_path):
    data = write_dataset(tmp_path / "data", 2, "h264")
    path = data / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.images.front"]["info"]["video.fps"] = 25
    path.write_text(json.dumps(info))
    found = examine(data)
    assert "camera 'front' runs at 25 frames per second, the data at 10" in found.problems[0].message
    with pytest.raises(UserError, match=r"camera 'front' runs at 25 frames per second, the data at 10"):
        open_dataset(data, 2)


def test_what_a_killed_writer_left_is_named(own_copy):
    (own_copy / "data/chunk-000/file-009.parquet.tmp").write_bytes(b"half")
    (problem,) = problems(own_copy, "left over")
    assert "file-009.parquet.tmp" in problem.message


def nan(root):
    change(root, "observation.state", lambda rows: rows[5].__setitem__(1, float("nan")))  # of episode 1


def truncated(root):
    path = root / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def without_file(root):
    """A video where there are videos, a data file elsewhere."""
    video = root / "videos/observation.images.wrist/chunk-000/file-001.mp4"
    (video if video.exists() else root / "data/chunk-000/file-001.parquet").unlink()


def of_file(root, number):
    table = pq.read_table(root / "meta/episodes")
    return {e for e, f in zip(*(table[c].to_pylist() for c in ("episode_index", "data/file_index"))) if f == number}  # noqa: B905


@pytest.mark.parametrize(("damage", "lost"), [(nan, {1}), (truncated, 1), (without_file, 1)])
def test_repair_keeps_every_usable_episode_whole_and_leaves_the_old_set_alone(own_copy, tmp_path, damage, lost):
    lost = lost if isinstance(lost, set) else of_file(own_copy, lost)
    codec = "h264" if (own_copy / "videos").exists() else "png"
    damage(own_copy)
    before = fingerprints(own_copy)
    found = examine(own_copy)
    assert found.bad_episodes == lost
    done = repair(own_copy, tmp_path / "new")
    assert fingerprints(own_copy) == before
    assert (done.kept, set(done.lost)) == (EPISODES - len(lost), lost)
    assert done.notes
    assert all("\n" not in note for note in done.notes)
    kept = [episode for episode in range(EPISODES) if episode not in lost]
    new = open_dataset(tmp_path / "new", 2, split="all")
    assert len(new) == sum(length(e) for e in kept)
    batch = new.batch(np.arange(len(new)))
    states = np.concatenate([vectors(e)[0] for e in kept]).astype(np.float32)
    np.testing.assert_array_equal(batch["observation.state"], states)
    assert new.episodes.seed.tolist() == kept
    for at, (episode, frame) in enumerate((e, f) for e in kept for f in range(length(e))):
        shown = batch["observation.images.wrist"][at].astype(float)
        difference = np.abs(shown - images(episode, frame, smooth=codec != "png")["wrist"]).mean()
        assert difference < (1e-9 if codec == "png" else 5)
    assert examine(tmp_path / "new", decode_videos=True).problems == []
    statistics = load_statistics(tmp_path / "new")["observation.state"]
    np.testing.assert_allclose(statistics.std, vector_statistics(states).std)


def test_episodes_that_were_never_listed_are_found_again(tmp_path):
    data = write_dataset(tmp_path / "data", 6)
    shutil.rmtree(data / "meta/episodes")
    done = repair(data, tmp_path / "new")
    assert (done.kept, done.lost) == (6, ())
    assert "made anew from the data files" in done.notes[0]
    rows = pq.read_table(tmp_path / "new/meta/episodes")
    assert rows["length"].to_pylist() == [length(e) for e in range(6)]
    assert [task for (task,) in rows["tasks"].to_pylist()] == [f"sentence {e % 3}" for e in range(6)]


def test_what_cannot_be_brought_back_is_said(tmp_path):
    lost = Path(shutil.copytree(HERE / "lerobot_v3_crashed", tmp_path / "lost"))
    path = lost / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:1000])  # of the first episode, which has nearly 1,400
    with pytest.raises(UserError, match="nothing can be brought back") as caught:
        repair(lost, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["lost"]


def test_repair_never_writes_over_anything(own_copy, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something already"):
        repair(own_copy, tmp_path / "new")


def test_the_page_has_a_sheet_of_every_episode_and_a_plot_of_every_entry(whole):
    html = page(examine(whole))
    assert html.count('<figure class="sheet">') == EPISODES
    assert html.count("data:image/jpeg;base64,") == EPISODES * len(FEATURES.cameras)
    assert html.count("<svg") == 1 + 5
    assert "http://" not in html
    assert "https://" not in html


def test_the_command_prints_tables_and_json_and_writes_the_page(own_copy, tmp_path, capsys):
    assert main(["inspect", str(own_copy), "--out", str(tmp_path / "seen")]) == 0
    printed = capsys.readouterr().out
    assert "sentence 0" in printed
    assert "no problems found" in printed
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"inspect.html", "inspect.json"}
    nan(own_copy)
    assert main(["inspect", str(own_copy), "--json"]) == 1
    assert "is not finite" in json.loads(capsys.readouterr().out)["problems"][0]["message"]
    assert main(["inspect", str(own_copy), "--repair"]) == 0
    assert "lost: 1;" in capsys.readouterr().out
    assert len(open_dataset(own_copy.with_name("copy-repaired"), 2, split="all").episodes) == EPISODES - 1


def test_an_episode_that_is_bad_can_be_left_out(own_copy):
    nan(own_copy)
    with pytest.raises(UserError, match="not finite at frame 1 of episode 1"):
        open_dataset(own_copy, 2, split="all")
    rest = open_dataset(own_copy, 2, split="all", episodes="0,2-11")
    assert len(rest.batch(np.arange(len(rest)))["task"]) == len(rest)
