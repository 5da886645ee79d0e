import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sample_episodes import fingerprints

from moe_robot.cli import main
from moe_robot.data import collect as collecting
from moe_robot.data import workers
from moe_robot.data.collect import collect
from moe_robot.data.demonstrate import LAYOUTS, SEED_LIMIT, TRIES_PER_LAYOUT, layout_seed
from moe_robot.data.layout import read_info
from moe_robot.data.loader import open_dataset
from moe_robot.processes import Rank
from moe_robot.registry import weights_sha256
from moe_robot.types import UserError

ENV = "pointworld/Point-v0"
GOALS = {"go_left": -0.8, "go_right": 0.8, "stay": 0.0}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Six episodes of each task, seeds from 10 on, collected at one go in one process."""
    directory = tmp_path_factory.mktemp("reference") / "data"
    collect(ENV, "all", 6, 10, directory)
    return directory


def test_every_task_gets_its_episodes_from_its_seeds(reference):
    episodes = open_dataset(reference, 2, split="all").episodes
    assert episodes.task == ("go_left", "go_right", "stay") * 6
    assert episodes.seed.tolist() == [seed for seed in range(10, 16) for _ in range(3)]


def test_the_label_is_the_clean_action_and_the_executed_one_is_disturbed(reference):
    dataset = open_dataset(reference, 1, split="all")
    batch = dataset.batch(np.arange(len(dataset)))
    position, label = batch["observation.state"][:, 0], batch["action"][:, 0, 0]
    goals = np.concatenate(
        [
            np.full(b - a, GOALS[t])
            for a, b, t in zip(dataset.episodes.start, dataset.episodes.stop, dataset.episodes.task, strict=True)
        ]
    )
    np.testing.assert_allclose(label, np.clip(goals - position, -0.2, 0.2), atol=1e-6)
    moved, inside = (
        np.diff(position),
        np.diff(np.repeat(dataset.episodes.index, dataset.episodes.stop - dataset.episodes.start)) == 0,
    )
    error = (moved - label[:-1])[inside]
    assert 0.02 < error.std() < 0.12  # 0.3 steps of 0.2, and kicks


def test_without_noise_the_clean_action_is_executed(tmp_path):
    collect(ENV, "go_left", 2, 0, tmp_path, noise=0.0)
    dataset = open_dataset(tmp_path, 1, split="all")
    batch = dataset.batch(np.arange(int(dataset.episodes.stop[0])))
    np.testing.assert_allclose(np.diff(batch["observation.state"][:, 0]), batch["action"][:-1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("noise", "kick"), [(0.0, 0.5), (0.05, 0.5), (0.3, 0.0)])
def test_kicks_are_as_strong_as_asked_whatever_the_noise(tmp_path, noise, kick):
    collect(ENV, "go_left", 40, 0, tmp_path, noise=noise, kick=kick)
    dataset = open_dataset(tmp_path, 1, split="all")
    assert dataset.provenance["kicks"] == {"rate": 0.03, "steps": 3, "scale": kick}
    batch = dataset.batch(np.arange(len(dataset)))
    starts = np.isin(np.arange(1, len(dataset)), dataset.episodes.start)
    error = np.diff(batch["observation.state"][:, 0]) - batch["action"][:-1, 0, 0]
    steps = np.abs(error[~starts]) / 0.2  # in steps' travel
    kicked = steps > 4 * max(noise, 0.01)
    assert (0.02 < kicked.mean() < 0.2) == (kick > noise)
    if kick > noise:
        assert 0.25 < steps[kicked].mean() < 1


def test_a_tail_goes_on_after_success_with_labels_and_changes_nothing_before(reference, tmp_path):
    collect(ENV, "go_left", 3, 10, tmp_path, tail=4)
    short, long = (open_dataset(each, 1, split="all") for each in (reference, tmp_path))
    mine = [i for i, task in enumerate(short.episodes.task) if task == "go_left"][:3]
    for i, j in enumerate(mine):
        before = short.batch(np.arange(short.episodes.start[j], short.episodes.stop[j]))
        after = long.batch(np.arange(long.episodes.start[i], long.episodes.stop[i]))
        n = len(before["action"])
        assert len(after["action"]) == n + 4
        np.testing.assert_array_equal(after["action"][:n, 0], before["action"][:, 0])
        position = after["observation.state"][n:, 0]
        assert np.all(np.abs(position - GOALS["go_left"]) < 0.4), "the expert stays about the goal"
    assert read_info(tmp_path).provenance["tail"] == 4
    assert "tail" not in read_info(reference).provenance


@pytest.fixture(scope="module")
def wanderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wanderer")
    (folder / "config.json").write_text(json.dumps({"policy": "wanderer", "size": 12}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_learner_drives_some_turns_and_the_labels_stay_the_experts(wanderer, tmp_path):
    collect(ENV, "go_left", 12, 0, tmp_path, noise=0.0, policy=wanderer, policy_share=0.4, policy_turn=3)
    dataset, driven = open_dataset(tmp_path, 1, split="all"), 0
    for start, stop in zip(dataset.episodes.start, dataset.episodes.stop, strict=True):
        batch = dataset.batch(np.arange(start, stop))
        position, label = batch["observation.state"][:, 0], batch["action"][:, 0, 0]
        np.testing.assert_allclose(label, np.clip(GOALS["go_left"] - position, -0.2, 0.2), atol=1e-6)
        wandered = np.isclose(np.diff(position), 0.1, atol=1e-4)
        assert np.all(wandered | np.isclose(np.diff(position), label[:-1], atol=1e-4))
        turns = [wandered[i : i + 3] for i in range(0, len(wandered), 3)]
        assert all(turn.all() or not turn.any() for turn in turns)
        driven += wandered.sum()
    assert 0.2 < driven / dataset.total_frames < 0.6
    learner = {"sha256": weights_sha256(wanderer), "share": 0.4}
    assert read_info(tmp_path).provenance["learner"] == {**learner, "turn": 3}
    collect(ENV, "go_left", 2, 0, tmp_path / "usual", noise=0.0, policy=wanderer, policy_share=0.4)
    assert read_info(tmp_path / "usual").provenance["learner"] == learner, "as in data sets from before"


def test_a_learner_gives_the_same_bits_with_any_number_of_workers_and_another_one_is_refused(wanderer, tmp_path):
    for workers_ in (1, 2):
        collect(ENV, "demo", 3, 0, tmp_path / str(workers_), policy=wanderer, policy_share=0.3, workers=workers_)
    assert fingerprints(tmp_path / "1") == fingerprints(tmp_path / "2")
    with pytest.raises(UserError, match="another"):
        collect(ENV, "demo", 4, 0, tmp_path / "1")
    (wanderer / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(UserError, match="another"):
        collect(ENV, "demo", 4, 0, tmp_path / "1", policy=wanderer, policy_share=0.3)


def test_a_learner_of_another_world_and_no_share_are_refused(wanderer, tmp_path):
    with pytest.raises(UserError, match=r"the policy .* does not fit pointworld/Point-v0: .*front"):
        collect(ENV, "all", 1, 0, tmp_path / "data", policy=wanderer)  # its pictures are larger
    with pytest.raises(UserError, match=r"policy_share 0: expected above 0"):
        collect(ENV, "all", 1, 0, tmp_path / "data", policy=wanderer, policy_share=0)
    with pytest.raises(UserError, match=r"policy_turn 0: expected at least 1"):
        collect(ENV, "all", 1, 0, tmp_path / "data", policy=wanderer, policy_turn=0)
    with pytest.raises(UserError, match="no checkpoint at"):
        collect(ENV, "all", 1, 0, tmp_path / "data", policy=tmp_path / "nowhere")
    assert not (tmp_path / "data").exists()


def test_the_sentence_is_the_instruction_of_the_episode(reference):
    episodes = open_dataset(reference, 1, split="all").episodes
    assert all(s.split()[1] == t.removeprefix("go_") for t, s in zip(episodes.task, episodes.sentence, strict=True))
    assert len(set(episodes.sentence)) > 3


def test_where_the_data_comes_from_is_written_down(reference):
    provenance = open_dataset(reference, 1).provenance
    assert provenance["environment"] == ENV
    assert (provenance["seed"], provenance["noise"], provenance["instructions"]) == (10, 0.3, "seen")
    assert provenance["renderer"] == "arrays"
    assert provenance["versions"]["numpy"] == np.__version__


def test_any_number_of_workers_gives_the_same_bits(reference, tmp_path):
    report = collect(ENV, "all", 6, 10, tmp_path, workers=3)
    assert (report.episodes, report.collected) == (18, 18)
    assert fingerprints(tmp_path) == fingerprints(reference)


def test_where_scenes_take_long_to_build_work_keeps_to_a_task_and_the_bits_stay(reference, tmp_path, monkeypatch):
    from pointworld import PointEnv

    monkeypatch.setattr(PointEnv, "scene_per_task", True, raising=False)
    monkeypatch.setattr(collecting, "IN_A_ROW", 2)
    made, demonstrate = [], workers.demonstrate_until_success
    monkeypatch.setattr(workers, "demonstrate_until_success", lambda *a: made.append(a[1]) or demonstrate(*a))
    collect(ENV, "all", 6, 10, tmp_path / "data")
    assert made == ["go_left"] * 2 + ["go_right"] * 2 + ["stay"] * 2 + made[:6] + made[:6]
    assert fingerprints(tmp_path / "data") == fingerprints(reference)


@pytest.mark.parametrize("commit_seconds", [0.0, 1000.0])
def test_an_interrupted_collection_goes_on_to_the_same_bits(reference, tmp_path, monkeypatch, commit_seconds):
    monkeypatch.setattr(collecting, "COMMIT_SECONDS", commit_seconds)
    for stop_at in (1, 4, 5, 11):

        def stop(step, stop_at=stop_at):
            if step.done >= stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collect(ENV, "all", 6, 10, tmp_path, progress=stop)
        assert len(open_dataset(tmp_path, 2, split="all").episodes) == stop_at
    report = collect(ENV, "all", 6, 10, tmp_path)
    assert (report.episodes, report.collected) == (18, 7)
    assert fingerprints(tmp_path) == fingerprints(reference)


def test_more_episodes_continue_a_finished_collection(reference, tmp_path):
    collect(ENV, "all", 2, 10, tmp_path)
    assert collect(ENV, "all", 6, 10, tmp_path).collected == 12
    assert fingerprints(tmp_path) == fingerprints(reference)
    again = collect(ENV, "all", 6, 10, tmp_path)
    assert (again.collected, again.episodes) == (0, 18)


KILLED = """
import sys
from moe_robot.data import collect as collecting
from moe_robot.data import workers
collecting.COMMIT_SECONDS = 0.05
show = lambda step: print(step.done, flush=True)
options = {"slow": 0.002}
to, workers = sys.argv[1], int(sys.argv[2])
collecting.collect("pointworld/Point-v0", "all", 25, 10, to, workers=workers, options=options, progress=show)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_kill_minus_nine_loses_no_finished_episode(tmp_path, kills):
    directory = tmp_path / "killed"
    chance = random.Random(5)
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, directory, str(1 + kill % 2)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        reported = [process.stdout.readline()]  # the first line: it has begun
        time.sleep(chance.uniform(0.0, 0.2))
        process.kill()
        reported += process.stdout.readlines()
        process.wait()
        done = int([line for line in reported if line.strip()][-1])
        total = json.loads((directory / "meta/info.json").read_text())["total_episodes"]
        waiting = [path for path in (directory / "pending").glob("*.parquet") if int(path.stem) >= total]
        assert total + len(waiting) >= done
        if total:
            dataset = open_dataset(directory, 2, split="all")
            assert len(dataset.episodes) == total
            assert len(dataset.batch(np.arange(len(dataset)))["task"]) == len(dataset)
    slow = {"slow": 0.002}
    collect(ENV, "all", 25, 10, tmp_path / "killed", options=slow)
    collect(ENV, "all", 25, 10, tmp_path / "whole", options=slow)
    assert fingerprints(tmp_path / "killed") == fingerprints(tmp_path / "whole")


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_workers_that_are_killed_lose_no_slot(tmp_path, kills, reaper):
    slow = {"slow": 0.002}
    with reaper(kills, every=2, within_s=0.1, seed=9) as deaths:

        def note(step):
            deaths.done = step.done

        report = collect(ENV, "all", 8 * kills, 10, tmp_path / "killed", options=slow, workers=2, progress=note)
    assert deaths.killed == kills
    assert report.episodes == report.collected == 3 * 8 * kills
    collect(ENV, "all", 8 * kills, 10, tmp_path / "whole", options=slow)
    assert fingerprints(tmp_path / "killed") == fingerprints(tmp_path / "whole")


FORK = multiprocessing.get_context("fork")  # a rank then starts at once: what it loads is loaded here


def start_rank(out, rank, episodes):
    slow = {"slow": 0.002}
    process = FORK.Process(
        target=collect, args=(ENV, "all", episodes, 10, out), kwargs={"options": slow, "rank": Rank(rank, 2)}
    )
    process.start()
    return process


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_ranks_that_are_killed_collect_the_data_set_of_one_process(tmp_path, kills):
    out, chance, episodes = tmp_path / "shared", random.Random(4), 5 * kills
    ranks = [start_rank(out, rank, episodes) for rank in (0, 1)]
    for _ in range(kills):
        before = len(list(out.glob("pending/*.parquet")))
        while len(list(out.glob("pending/*.parquet"))) < before + 2:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.05))
        victim = chance.randrange(2)
        assert read_info(out).episodes == 0, "it was over before the last kill: the test shows less than it says"
        ranks[victim].kill()
        ranks[victim].join()
        ranks[victim] = start_rank(out, victim, episodes)
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    collect(ENV, "all", episodes, 10, tmp_path / "whole", options={"slow": 0.002})
    assert fingerprints(out) == fingerprints(tmp_path / "whole")
    assert not (out / "pending").exists()
    assert not list(out.glob(".share*"))


def test_the_living_collect_the_share_of_the_dead(tmp_path):
    lost = start_rank(tmp_path / "shared", 1, 6)
    while len(list((tmp_path / "shared").glob("pending/*.parquet"))) < 2:
        time.sleep(0.005)
    lost.kill()
    lost.join()
    report = collect(ENV, "all", 6, 10, tmp_path / "shared", options={"slow": 0.002}, rank=Rank(0, 2))
    assert report.episodes == 18
    assert report.collected <= 16
    collect(ENV, "all", 6, 10, tmp_path / "whole", options={"slow": 0.002})
    assert fingerprints(tmp_path / "shared") == fingerprints(tmp_path / "whole")


def test_a_rank_is_refused_another_data_set_before_any_work(reference):
    with pytest.raises(UserError, match="noise"):
        collect(ENV, "all", 8, 10, reference, noise=0.1, rank=Rank(1, 2))


def test_workers_end_with_a_killed_parent(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, "2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [child for child in children if os.path.exists(f"/proc/{child}")]


def test_a_failed_rollout_is_tried_again_with_new_noise_and_then_another_layout(tmp_path):
    report = collect(ENV, "stay", 3, 7, tmp_path, options={"hopeless": [8]})
    assert report.failures == {"stay": TRIES_PER_LAYOUT}
    assert open_dataset(tmp_path, 1, split="all").episodes.seed.tolist() == [7, layout_seed(8, TRIES_PER_LAYOUT), 9]


def test_seeds_of_retries_stay_in_the_range_of_collection_and_apart():
    for attempt in range(LAYOUTS * TRIES_PER_LAYOUT):
        seeds = [layout_seed(seed, attempt) for seed in range(SEED_LIMIT)]
        assert sorted(seeds) == list(range(SEED_LIMIT))
    assert len({layout_seed(3, attempt) for attempt in range(LAYOUTS * TRIES_PER_LAYOUT)}) == LAYOUTS


def test_failures_are_kept_when_asked_for(tmp_path):
    report = collect(ENV, "stay", 3, 7, tmp_path, options={"hopeless": [8]}, successes_only=False)
    assert (report.episodes, report.failures) == (3, {})
    episodes = open_dataset(tmp_path, 1, split="all").episodes
    assert (episodes.stop - episodes.start)[1] == 30
    assert episodes.seed.tolist() == [7, 8, 9]


def test_options_that_the_tasks_imply_are_set_and_noted(tmp_path):
    collect(ENV, "demo", 1, 0, tmp_path / "implied")
    implied = open_dataset(tmp_path / "implied", 1, split="all")
    assert implied.features.cameras["front"] == (12, 16)
    assert implied.provenance["options"] == {"size": 12}
    collect(ENV, "demo", 1, 0, tmp_path / "chosen", options={"size": 20})
    assert open_dataset(tmp_path / "chosen", 1, split="all").features.cameras["front"] == (20, 24)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment": "pointwurld"}, "unknown environment"),
        ({"tasks": "go_lef"}, "unknown task 'go_lef': did you mean go_left"),
        ({"options": {"siez": 3}}, "refused its options"),
        ({"instructions": "sean"}, "unknown instruction set 'sean': did you mean seen"),
        ({"seed": 9999, "episodes": 2}, "seeds 9999 to 10000 are not all for collection"),
        ({"seed": -1}, "seeds -1"),
        ({"workers": 0}, "workers 0"),
        ({"noise": -0.1}, "noise -0.1"),
        ({"kick": -0.1}, "kick -0.1"),
        (
            {"options": {"hopeless": list(range(SEED_LIMIT))}},
            "the expert of 'stay' failed 24 times in a row from seed 0",
        ),
        ({"environment": "CartPole-v1", "tasks": "all"}, "expected a Dict .*pixels"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, settings, message):
    good = {"environment": ENV, "tasks": "stay", "episodes": 1, "seed": 0, "out": tmp_path}
    with pytest.raises(UserError, match=message) as caught:
        collect(**{**good, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 0.2}, r"noise 0\.3, expected 0\.2"),
        ({"seed": 11}, "seed 10, expected 11"),
        ({"tasks": "demo"}, "options|tasks"),
    ],
)
def test_another_collection_in_the_directory_is_refused(reference, change, message):
    before = fingerprints(reference)
    with pytest.raises(UserError, match=f"holds another data set .*{message}"):
        collect(**{"environment": ENV, "tasks": "all", "episodes": 6, "seed": 10, "out": reference, **change})
    assert fingerprints(reference) == before


def test_errors_of_workers_reach_the_user_and_keep_what_was_finished(tmp_path):
    with pytest.raises(UserError, match=r"a collection worker died .* finished episodes are kept"):
        collect(ENV, "stay", 30, 0, tmp_path, options={"die_at": 20}, workers=2)
    # What the slower worker has not done keeps later episodes waiting in pending/; the same command takes them in.
    assert read_info(tmp_path).episodes + len(list((tmp_path / "pending").glob("*.parquet"))) >= 15
    with pytest.raises(UserError, match=r"failed 24 times in a row from seed [34]"):
        collect(ENV, "stay", 5, 0, tmp_path / "b", options={"hopeless": list(range(3, SEED_LIMIT))}, workers=2)
    assert open_dataset(tmp_path / "b", 1, split="all").episodes.seed.tolist() == [0, 1, 2]


def test_a_full_disk_is_one_line_and_keeps_what_was_finished(tmp_path):
    """A real failing write: the process may not write files larger than 60 kB."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from moe_robot.cli import main;"
        f"sys.exit(main(['collect', '--env', '{ENV}', '--tasks', 'go_left', '--episodes', '200', '--workers', '1',"
        " '--env-options', 'size=40', '--out', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "data"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"moe-robot collect: writing to {tmp_path}/data failed")
    assert "Traceback" not in done.stderr


def test_a_file_in_place_of_the_directory_is_one_line(tmp_path, capsys):
    (tmp_path / "data").write_text("")
    arguments = ["--env", ENV, "--tasks", "stay", "--episodes", "1", "--workers", "1"]
    assert main(["collect", *arguments, "--out", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.strip().endswith("is not a directory: choose another name")


def test_the_command_prints_json(tmp_path, capsys):
    arguments = ["--env", ENV, "--tasks", "go_left,stay", "--episodes", "2", "--seed", "4", "--workers", "1", "--json"]
    assert main(["collect", *arguments, "--out", str(tmp_path), "--env-options", "size=10", "slow=0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["episodes"], printed["collected"], printed["failed_rollouts"]) == (4, 4, {})
    assert open_dataset(tmp_path, 1, split="all").provenance["options"] == {"size": 10, "slow": 0}


def test_control_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-c", "import sys; from moe_robot.cli import main; sys.exit(main())", "collect"]
    command += ["--env", ENV, "--tasks", "all", "--episodes", "500", "--out", str(tmp_path / "data"), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data/pending/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished episodes are kept" in errors
    assert f"To go on: moe-robot collect --env {ENV}" in errors
    assert "Traceback" not in errors
    assert len(open_dataset(tmp_path / "data", 1, split="all").episodes) >= 1


def test_demonstrations_of_a_real_world(tmp_path):
    """PitStop in MuJoCo: the camera moves with the hand, the sentence names the object, the expert succeeds."""
    report = collect("pitstop", "press_red,pick_blue_cube", 2, 0, tmp_path)
    assert report.episodes == 4
    dataset = open_dataset(tmp_path, 8, split="all")
    assert set(dataset.features.cameras) == {"front", "wrist"}
    assert dataset.episodes.task == ("press_red", "pick_blue_cube") * 2
    first = dataset.batch(np.arange(int(dataset.episodes.stop[0])))
    assert np.abs(np.diff(first["observation.images.wrist"].astype(float), axis=0)).mean(axis=(1, 2, 3)).min() > 0.5
    assert np.isfinite(first["action"]).all()
    assert np.abs(first["action"][..., :3]).max() > 0.01
