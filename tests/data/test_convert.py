"""robomimic's files become data sets and data sets become robomimic's files; its own reader finds everything."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from robomimic_environment import run_robomimic
from sample_episodes import FEATURES, fingerprints, images, length, vectors, write_dataset

from moe_robot.cli import main
from moe_robot.data.examine import examine
from moe_robot.data.from_robomimic import from_robomimic
from moe_robot.data.loader import open_dataset

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}
LOW_DIM = {"robot0_eef_pos": 3, "robot0_gripper_qpos": 2, "object": 4}
DEMOS = 12


def demo(number):
    """What one demonstration holds."""
    rng, n = np.random.default_rng(number), 5 + number % 3
    low_dim = {key: rng.normal(size=(n, size)) for key, size in LOW_DIM.items()}
    pictures = {f"{c}_image": rng.integers(0, 256, (n, 16, 24, 3), np.uint8) for c in ("agentview", "robot0_eye")}
    last = np.arange(n) == n - 1
    return {
        "actions": rng.uniform(-1, 1, (n, 7)),
        "rewards": last * (number % 4 > 0) * 1.0,
        "dones": last.astype(np.int64),
        "states": rng.normal(size=(n, 11)),
        **{f"obs/{key}": values for key, values in (low_dim | pictures).items()},
    }


@pytest.fixture
def file(tmp_path):
    """A file as robomimic writes it, with more than ten demonstrations: their names sort badly."""
    path = tmp_path / "lift.hdf5"
    with h5py.File(path, "w") as made:
        for number in range(DEMOS):
            for key, values in demo(number).items():
                made[f"data/demo_{number}/{key}"] = values
            made[f"data/demo_{number}"].attrs["num_samples"] = len(demo(number)["actions"])
        made["data"].attrs["total"] = sum(len(demo(i)["actions"]) for i in range(DEMOS))
        made["data"].attrs["env_args"] = json.dumps(ENV_ARGS)
        made["mask/train"] = np.array([f"demo_{i}" for i in range(0, DEMOS, 2)], dtype="S")
        made["mask/valid"] = np.array([f"demo_{i}" for i in range(1, DEMOS, 2)], dtype="S")
    return path


def said(capsys, *arguments):
    status = main(["convert", *map(str, arguments)])
    told = capsys.readouterr()
    return told.out.strip() if status == 0 else told.err.strip().splitlines()[-1]


def test_a_robomimic_file_becomes_a_data_set_without_loss(file, tmp_path, capsys):
    frames = sum(len(demo(i)["actions"]) for i in range(DEMOS))
    assert said(capsys, file, tmp_path / "data").endswith(f"data: {DEMOS} episodes, {frames} frames")
    data = open_dataset(tmp_path / "data", 1, split="all")
    assert (data.features.fps, dict(data.features.cameras)) == (20, {"agentview": (16, 24), "robot0_eye": (16, 24)})
    assert data.features.state_names[2:4] == ("robot0_eef_pos.2", "robot0_gripper_qpos.0")
    assert data.features.environment_names == tuple(f"object.{i}" for i in range(4))
    assert data.tasks == ("Lift",)
    kept = data.further(["next.reward", "next.done", "states"])
    for number in range(DEMOS):
        rows = np.arange(data.episodes.start[number], data.episodes.stop[number])
        batch, truth = data.batch(rows), demo(number)
        np.testing.assert_array_equal(batch["action"][:, 0], truth["actions"].astype(np.float32))
        state = np.concatenate([truth["obs/robot0_eef_pos"], truth["obs/robot0_gripper_qpos"]], axis=1)
        np.testing.assert_array_equal(batch["observation.state"], state.astype(np.float32))
        np.testing.assert_array_equal(batch["environment_state"], truth["obs/object"].astype(np.float32))
        for camera in data.features.cameras:
            np.testing.assert_array_equal(batch[f"observation.images.{camera}"], truth[f"obs/{camera}_image"])
        np.testing.assert_array_equal(kept["states"][rows], truth["states"])
        np.testing.assert_array_equal(kept["next.reward"][rows, 0], truth["rewards"])
        np.testing.assert_array_equal(kept["next.done"][rows, 0], truth["dones"].astype(bool))
    rows = pq.read_table(tmp_path / "data/meta/episodes")
    assert rows["success"].to_pylist() == [number % 4 > 0 for number in range(DEMOS)]
    assert examine(tmp_path / "data").bad_episodes == set()


def contents(path):
    """Every dataset and attribute of an HDF5 file."""
    found = {}

    def visit(name, thing):
        found.update({f"{name}@{key}": value for key, value in thing.attrs.items()})
        if hasattr(thing, "shape"):
            found[name] = thing[()]

    with h5py.File(path) as opened:
        opened.visititems(visit)
    return found


def test_there_and_back_is_what_it_was(file, tmp_path, capsys):
    said(capsys, file, tmp_path / "data")
    said(capsys, tmp_path / "data", tmp_path / "again.hdf5")
    before, after = contents(file), contents(tmp_path / "again.hdf5")
    assert {key for key in before if key not in after} == set()
    for key, values in before.items():
        if key.endswith("env_args"):
            assert json.loads(after[key]) == json.loads(values)
        elif "obs/" in key or "actions" in key:
            np.testing.assert_array_equal(after[key], values.astype(after[key].dtype), err_msg=key)  # float32
        else:
            np.testing.assert_array_equal(after[key], values, err_msg=key)
    assert after["data/demo_3@env_task"] == "Lift"


def test_demonstrations_become_a_robomimic_file(tmp_path, capsys):
    write_dataset(tmp_path / "data", 44)
    assert "44 episodes" in said(capsys, tmp_path / "data", tmp_path / "out.hdf5")
    with h5py.File(tmp_path / "out.hdf5") as made:
        assert made["data"].attrs["total"] == sum(length(e) for e in range(44))
        for episode in (0, 7, 43):
            of, (states, actions) = made[f"data/demo_{episode}"], vectors(episode)
            np.testing.assert_array_equal(of["obs/state"], states.astype(np.float32))
            np.testing.assert_array_equal(of["actions"], actions.astype(np.float32))
            for frame in range(length(episode)):
                np.testing.assert_array_equal(of["obs/wrist_image"][frame], images(episode, frame)["wrist"])
            assert json.loads(of["obs/state"].attrs["names"]) == list(FEATURES.state_names)
            assert (of.attrs["num_samples"], of.attrs["task"]) == (length(episode), f"sentence {episode % 3}")
            assert of["dones"][()].tolist() == [0] * (length(episode) - 1) + [1]
        assert made["mask/valid"][()].tolist() == [b"demo_38", b"demo_39"]  # the 20th of either task
        assert len(made["mask/train"]) == 42
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / "data/.cache").exists()


def test_a_choice_of_episodes_and_cameras_is_written_under_new_names(tmp_path, capsys):
    write_dataset(tmp_path / "data", 6, "h264")
    chosen = ("--episodes", "2-3", "--cameras", "front", "--rename", "wrist=front", "front=top")
    said(capsys, tmp_path / "data", tmp_path / "out.hdf5", *chosen)
    with h5py.File(tmp_path / "out.hdf5") as made:
        assert list(made["data"]) == ["demo_0", "demo_1"]
        assert made["data/demo_1/obs/front_image"].shape == (length(3), 16, 16, 3)


def test_a_conversion_that_was_stopped_goes_on_to_the_same_bits(file, tmp_path, capsys):
    said(capsys, file, tmp_path / "whole")

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_robomimic(file, tmp_path / "data", progress=stop)
    assert len(open_dataset(tmp_path / "data", 1, split="all").episodes) == 5
    said(capsys, file, tmp_path / "data")
    assert fingerprints(tmp_path / "data") == fingerprints(tmp_path / "whole")
    with h5py.File(file, "a") as changed:
        changed["data/demo_0/actions"][0, 0] = 0.5
    assert "holds another data set" in said(capsys, file, tmp_path / "data")


def test_a_full_disk_leaves_no_file_that_looks_finished(tmp_path):
    write_dataset(tmp_path / "data", 30)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from moe_robot.cli import main; sys.exit(main(['convert', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "data", tmp_path / "out/set.hdf5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the demonstrations are as they were" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edited(change):
    def edit(path):
        with h5py.File(path, "a") as opened:
            change(opened)

    return edit


def shorter(opened):
    values = opened["data/demo_4/rewards"][:-1]
    del opened["data/demo_4/rewards"]
    opened["data/demo_4/rewards"] = values


def without(name):
    return edited(lambda opened: opened.__delitem__(name))


@pytest.mark.parametrize(
    ("damage", "message", "kept"),
    [
        (Path.unlink, r"lift\.hdf5 is missing", 0),
        (truncated, r"lift\.hdf5 cannot be opened \(.*truncated", 0),
        (lambda path: path.write_text("no HDF5"), r"lift\.hdf5 cannot be opened", 0),
        (edited(lambda f: f.move("data", "episodes")), "has no group 'data'", 0),
        (without("data/demo_0/obs"), "demo_0: expected 'actions' and 'obs'", 0),
        (edited(shorter), r"demo_4: rewards has \d+ frames, expected 6", 4),
        (without("data/demo_3/obs/robot0_eye_image"), "demo_3: obs/robot0_eye_image is missing", 3),
        (edited(lambda f: f["data/demo_2/actions"].__setitem__((1, 3), np.nan)), "demo_2: frame 1: action entry", 2),
        (edited(lambda f: f["data"].attrs.__delitem__("env_args")), "control rate .* --fps", 0),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_and_demonstration(file, tmp_path, capsys, damage, message, kept):
    damage(file)
    line = said(capsys, file, tmp_path / "data")
    assert re.search(message, line), line
    if kept:
        assert len(open_dataset(tmp_path / "data", 1, split="all").episodes) == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{file}", "{out}", "--low-dim", "robot0_eef_pso"), "did you mean robot0_eef_pos"),
        (("{file}", "{out}", "--cameras", "agentvew"), "did you mean agentview"),
        (("{file}", "{out}", "--episodes", "0"), "--episodes is for reading demonstrations"),
        (("{file}", "{out}.hdf5"), "are both robomimic files"),
        (("{out}", "{out}2"), "are both data sets"),
        (("{out}", "{out}.hdf5"), "no data set at"),
    ],
)
def test_a_mistake_is_one_line(file, tmp_path, capsys, arguments, message):
    given = [argument.format(file=file, out=tmp_path / "out") for argument in arguments]
    assert message in said(capsys, *given)


def test_what_is_there_already_is_not_written_over(file, tmp_path, capsys):
    before = file.read_bytes()
    write_dataset(tmp_path / "data", 1)
    assert "is there already" in said(capsys, tmp_path / "data", file)
    assert file.read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.tex").write_text("years of work")
    assert "not empty and no data set" in said(capsys, file, tmp_path / "notes")


@pytest.mark.full
def test_the_real_robomimic_reads_what_was_written_and_its_splits_come_along(file, tmp_path, capsys):
    said(capsys, SAMPLE, tmp_path / "sample.hdf5", "--episodes", "0-1")
    said(capsys, file, tmp_path / "data")
    said(capsys, tmp_path / "data", tmp_path / "again.hdf5")
    (tmp_path / "split.hdf5").write_bytes(file.read_bytes())
    masks = {"sample": "train", "lift": "valid", "again": "valid", "split": None}
    jobs = [{"read": f"{tmp_path}/{name}.hdf5", "to": f"{tmp_path}/{name}.npz"} for name in masks]
    run_robomimic([job | ({"mask": mask} if mask else {}) for job, mask in zip(jobs, masks.values(), strict=True)])
    seen, data = np.load(tmp_path / "sample.npz"), open_dataset(SAMPLE, 1, split="all", episodes="0-1", cache=tmp_path)
    assert seen["demos"].tolist() == ["demo_0", "demo_1"]
    batch = data.batch(np.arange(len(data)))
    np.testing.assert_array_equal(seen["actions"], batch["action"][:, 0])
    np.testing.assert_array_equal(seen["obs/state"], batch["observation.state"])
    np.testing.assert_array_equal(seen["obs/corner2_image"], batch["observation.images.corner2"])
    assert seen["dones"].sum() == 2
    theirs, ours = np.load(tmp_path / "lift.npz"), np.load(tmp_path / "again.npz")
    assert set(ours) == set(theirs)
    assert json.loads(str(ours["env_args"])) == ENV_ARGS
    for key in set(theirs) - {"env_args"}:
        if theirs[key].dtype.kind == "f":
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, err_msg=key)
        else:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    said(capsys, tmp_path / "split.hdf5", tmp_path / "split")
    said(capsys, tmp_path / "split", tmp_path / "split-again.hdf5")
    with h5py.File(tmp_path / "split.hdf5") as split, h5py.File(tmp_path / "split-again.hdf5") as again:
        for mask in ("train", "valid"):
            assert sorted(again[f"mask/{mask}"][()].tolist()) == sorted(split[f"mask/{mask}"][()].tolist())
