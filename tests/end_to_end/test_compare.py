"""``moe-robot compare`` for real, small: a world of arrays, two presets, a few steps; what is kept and what refused."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from moe_robot.cli import main

PLUGIN = Path(__file__).parents[1] / "data/plugin"
SMALL = "width=16,hidden=8,stem_channels=8,patches=1,glimpses=2,heads=2,chunk=4,batch_size=8"
ENTRIES = ["--entries", f"moe=moe:{SMALL}", f"dense=dense-active:{SMALL}"]


@pytest.fixture(scope="module", autouse=True)
def pointworld(plugged_in):
    """The tests' tiny world, here and in processes that a test starts."""
    with plugged_in(PLUGIN) as module:
        module.register()
        yield


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations")
    arguments = ["--env", "pointworld/Point-v0", "--tasks", "go_left,go_right", "--episodes", "3", "--workers", "1"]
    assert main(["collect", *arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def compare(demonstrations, tmp_path, capsys):
    """A function that runs the verb on the demonstrations; returns its status, output and complaints."""

    def run(*arguments: str, data: Path = demonstrations, out: Path = tmp_path / "out"):
        capsys.readouterr()
        length = [] if {"--steps", "--minutes", "--only-table"} & set(arguments) else ["--steps", "3"]
        always = ["--episodes", "2", "--speed-seconds", "0.05", *length]
        given = ["compare", "--data", str(data), "--out", str(out), *always, *arguments]
        status = main(given)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def finished(demonstrations, tmp_path_factory):
    """A finished comparison with everything in it: its folder, and what it printed as JSON."""
    out = tmp_path_factory.mktemp("finished")
    patch = pytest.MonkeyPatch()
    written = out / "printed.json"
    with written.open("w") as file:
        patch.setattr(sys, "stdout", file)
        off = [
            "--sensors-off",
            "front,wrist+language",
            "--knockout",
            "vision,gate.content",
            "--shuffled",
            "--ablation-episodes",
            "1",
        ]
        length = ["--seeds", "0", "1", "--steps", "3", "--episodes", "2", "--speed-seconds", "0.05"]
        told = ["--markdown", str(out / "table.md"), "--json"]
        status = main(["compare", "--data", str(demonstrations), "--out", str(out), *ENTRIES, *length, *off, *told])
        patch.undo()
    assert status == 0
    return out, json.loads(written.read_text())


def results(out: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in out.glob("results/*-seed*.json")}


def test_every_entry_is_trained_with_every_seed_and_put_side_by_side(finished):
    _, printed = finished
    moe, dense = printed["rows"]
    assert (moe["label"], dense["label"], moe["seeds"]) == ("moe", "dense", [0, 1])
    assert moe["success"]["n"] == 2 * 2 * 2
    assert moe["samples"] == 3 * 8
    assert (moe["against"], dense["against"]["pairs"]) == (None, 8)
    assert printed["missing"] == []
    off = {(row["label"], row["what"]): row["success"]["n"] for row in printed["ablations"]}
    both = ["sensors front", "sensors wrist+language", "instructions shuffled"]
    assert off == dict.fromkeys(
        [
            ("moe", "experts vision"),
            ("moe", "gate content"),
            *((label, what) for label in ("moe", "dense") for what in both),
        ],
        2 * 2,
    )


def test_a_result_is_small_and_says_all_that_decided_it_but_not_where_it_ran(finished, demonstrations):
    out, _ = finished
    result = results(out)["moe-seed1"]
    identity = result["identity"]
    assert (identity["preset"], identity["config"]["hidden"], identity["config"]["layers"]) == ("moe", 8, 2)
    assert (identity["training"]["steps"], identity["training"]["batch_size"]) == (3, 8)
    assert (identity["tasks"], identity["episodes"], identity["seed"]) == (["go_left", "go_right"], 2, 1)
    assert identity["data_sha256"] == result["training"]["dataset_sha256"]
    assert {task: len(row) for task, row in result["outcomes"].items()} == {"go_left": 2, "go_right": 2}
    assert set("".join(result["outcomes"].values())) <= set("swte")
    assert {"start", "end"} == set(result["load"])
    assert result["latency_ms"]["p95"] > 0
    assert result["training"]["routing"]["step0"]
    assert result["cost"]["flops"]
    for path in out.glob("results/*.json"):
        text = path.read_text()
        assert len(text) < 30_000
        for private in (str(out), str(demonstrations), os.uname().nodename):
            assert private not in text


def test_speed_is_measured_once_for_all_entries(finished):
    out, printed = finished
    speed = json.loads((out / "results/speed.json").read_text())
    assert set(speed["entries"]) == {"moe", "dense"}
    assert speed["entries"] == printed["speed"]
    calls = [times["calls"] for times in speed["entries"].values()]
    assert len(set(calls)) == 1, "one entry was called more often: they were not measured in turn"
    for times in speed["entries"].values():
        assert 0 < times["chunk_cpu_ms"]["p50"] <= times["chunk_cpu_ms"]["p95"]
        assert times["chunks_per_second"] > 0
        assert times["training_samples_per_second"] > 0


def test_the_markdown_has_all_three_tables(finished):
    text = (finished[0] / "table.md").read_text()
    for title in ("**Success**", "**Cost and speed**", "**With parts switched off**"):
        assert title in text
    assert "| dense | sensors wrist+language |" in text


def test_what_is_finished_is_not_run_again_also_where_the_checkpoints_are_not(compare, finished, tmp_path):
    committed = tmp_path / "out/results"
    committed.mkdir(parents=True)
    for path in finished[0].glob("results/*.json"):
        (committed / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.stat().st_mtime_ns for path in committed.iterdir()}
    status, printed, _ = compare(*ENTRIES, "--seeds", "0", "1", "--json")
    assert status == 0
    assert json.loads(printed)["rows"] == finished[1]["rows"]
    assert {path.name: path.stat().st_mtime_ns for path in committed.iterdir()} == before
    assert not (tmp_path / "out/runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "4"], "steps was 3, now it is 4"),
        (["--minutes", "1"], "steps was 3, now it is None"),
        (["--episodes", "3"], "episodes was 2, now it is 3"),
        (["--eval-seed", "100001"], "eval_seed was 100000, now it is 100001"),
        (["--tasks", "go_left"], "tasks was ['go_left', 'go_right'], now it is ['go_left']"),
        (["--entries", f"moe=moe:{SMALL},layers=3"], "layers was 2, now it is 3"),
        (["--entries", f"moe=moe:{SMALL},learning_rate=0.01"], "learning_rate was 0.001, now it is 0.01"),
        (["--entries", f"moe=moe:{SMALL},gate_rate=0.5"], "gate_rate was 0.1, now it is 0.5"),
        (["--entries", f"moe=random:{SMALL}"], "preset was 'moe', now it is 'random'"),
    ],
)
def test_a_result_of_another_run_is_refused_by_what_differs(compare, finished, arguments, message):
    before = results(finished[0])
    status, _, error = compare(*ENTRIES, "--seeds", "0", *arguments, out=finished[0])
    assert status == 1
    assert len(error.splitlines()) == 1
    assert f"{finished[0]}/results/moe-seed0.json is of another run" in error
    assert message in error
    assert results(finished[0]) == before


def test_other_demonstrations_are_another_run(compare, finished, demonstrations, tmp_path):
    more = tmp_path / "more"
    arguments = ["--env", "pointworld/Point-v0", "--tasks", "go_left,go_right", "--episodes", "4", "--workers", "1"]
    assert main(["collect", *arguments, "--out", str(more)]) == 0
    status, _, error = compare(*ENTRIES, "--seeds", "0", out=finished[0], data=more)
    assert status == 1
    assert "data_sha256 was" in error


def test_a_setting_that_an_older_result_does_not_know_does_not_make_it_another_run(compare, finished, tmp_path):
    path = tmp_path / "out/results/moe-seed0.json"
    path.parent.mkdir(parents=True)
    result = results(finished[0])["moe-seed0"]
    del result["identity"]["config"]["jitter"], result["identity"]["training"]["gate_rate"]
    path.write_text(json.dumps(result))
    assert compare(*ENTRIES[:2], "--seeds", "0", "--no-speed")[0] == 0
    for key in ("jitter", "gate_rate"):
        status, _, error = compare("--entries", f"moe=moe:{SMALL},{key}=0.2", "--seeds", "0", "--no-speed")
        assert status == 1
        assert f"{key} was None, now it is 0.2" in error


def test_ablations_can_be_asked_for_later(compare, tmp_path):
    entry = [*ENTRIES[:2], "--seeds", "0", "--no-speed"]
    assert compare(*entry)[0] == 0
    first = results(tmp_path / "out")["moe-seed0"]
    trained = (tmp_path / "out/runs/moe-seed0/state").stat().st_mtime_ns
    assert compare(*entry, "--sensors-off", "wrist", "--shuffled", "--ablation-episodes", "1")[0] == 0
    second = results(tmp_path / "out")["moe-seed0"]
    assert second["outcomes"] == first["outcomes"]
    assert {what: len(row["go_left"]) for what, row in second["ablations"].items()} == {
        "sensors wrist": 1,
        "instructions shuffled": 1,
    }
    assert (tmp_path / "out/runs/moe-seed0/state").stat().st_mtime_ns == trained


def test_shards_divide_the_runs_and_the_last_one_measures_speed(compare, finished, tmp_path):
    seeds = ["--seeds", "0", "1"]
    _, _, error = compare(*ENTRIES, *seeds, "--shard", "1/2")
    assert set(results(tmp_path / "out")) == {"dense-seed0", "dense-seed1"}
    assert "still missing: moe-seed0, moe-seed1" in error
    assert not (tmp_path / "out/results/speed.json").exists()
    status, _, error = compare(*ENTRIES, *seeds, "--shard", "0/2")
    assert (status, "missing" in error) == (0, False)
    assert (tmp_path / "out/results/speed.json").exists()
    whole = results(finished[0])
    assert {name: one["outcomes"] for name, one in results(tmp_path / "out").items()} == {
        name: one["outcomes"] for name, one in whole.items()
    }


def test_the_table_alone_says_what_is_missing(compare, finished):
    status, printed, error = compare("--only-table", *ENTRIES, "late=moe", "--json", out=finished[0])
    assert status == 0
    assert [row["label"] for row in json.loads(printed)["rows"]] == ["moe", "dense"]
    assert "still missing: late (every seed)" in error
    assert json.loads(compare("--only-table", "--json", out=finished[0])[1])["rows"] == finished[1]["rows"]


def test_a_checkpoint_is_an_entry_of_its_own_with_the_seed_of_its_training(compare, finished, tmp_path):
    run = finished[0] / "runs/moe-seed1"
    status, printed, _ = compare("--load", f"theirs={run}", "--json", "--sensors-off", "front", "--baseline", "theirs")
    assert status == 0
    (row,) = json.loads(printed)["rows"]
    assert (row["label"], row["seeds"]) == ("theirs", [1])
    assert results(tmp_path / "out")["theirs-seed1"]["outcomes"] == results(finished[0])["moe-seed1"]["outcomes"]


def test_a_sweep_draws_its_curves(compare, tmp_path):
    swept = ["--sweep", "hidden=8,16", "--baseline", "moe-hidden8", "--speed-seconds", "0.01"]
    assert compare(*ENTRIES[:2], "--seeds", "0", *swept)[0] == 0
    assert set(results(tmp_path / "out")) == {"moe-hidden8-seed0", "moe-hidden16-seed0"}
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare: name presets after --entries"),
        (["--entries", "mo"], "unknown preset 'mo': did you mean moe"),
        (["--entries", "moe:hiden=8"], "unknown policy config key 'hiden': did you mean hidden"),
        (["--entries", "moe:width=wide"], "entry moe-widthwide"),
        (["--entries", "a/b=moe"], "label 'a/b'"),
        (["--entries", "moe", "--steps", "3", "--minutes", "1"], "either --steps N or --minutes M"),
        (["--entries", "moe", "--seeds", "1", "1"], "expected one or more, each once"),
        (["--entries", "moe", "--episodes", "0"], "expected at least 1"),
        (["--entries", "moe", "--tasks", "go_lft"], "unknown task 'go_lft': did you mean go_left"),
        (["--entries", "moe", "--tasks", "go_left", "--shuffled"], "need at least two tasks"),
        (["--entries", f"moe:{SMALL}", "--sensors-off", "frnt"], "unknown sensor 'frnt': did you mean front"),
        (["--entries", f"moe:{SMALL}", "--knockout", "visoin"], "unknown expert role 'visoin': did you mean vision"),
        (["--entries", f"dense-active:{SMALL}", "--knockout", "vision"], "has no experts to switch off"),
        (
            ["--entries", f"moe:{SMALL}", "--knockout", "gate.role"],
            "unknown part of the gate 'gate.role': did you mean",
        ),
        (["--entries", f"switch:{SMALL}", "--knockout", "gate.modality"], "expected a gate with a term per modality"),
        (["--entries", "moe", "--shard", "2/2"], "--shard '2/2': expected I/N"),
        (["--entries", "moe", "--shard", "a/2"], "--shard 'a/2': expected I/N"),
        (["--load", "ours=nowhere"], "no checkpoint at nowhere"),
        (["--only-table"], "no result in"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(compare, tmp_path, arguments, message):
    status, _, error = compare(*arguments)
    assert status == 1
    (line,) = error.splitlines()
    assert line.startswith("moe-robot compare: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_mixture_is_learned_and_evaluated_in_the_world_of_its_first_part(compare, demonstrations, tmp_path):
    mix, out = tmp_path / "mix.yaml", tmp_path / "out"
    mix.write_text("".join(f"- {{data: {demonstrations}, tasks: [{task}]}}\n" for task in ("go_left", "go_right")))
    entry = ("--entries", f"moe=moe:{SMALL}", "--seeds", "0", "--no-speed")
    status, _, err = compare(*entry, "--cameras", "front", data=mix, out=out)
    assert status == 1
    assert "is a mixture: choose tasks, episodes, cameras and names in its parts" in err
    status, _, _ = compare(*entry, data=mix, out=out)
    assert status == 0
    result = json.loads((out / "results/moe-seed0.json").read_text())
    assert set(result["outcomes"]) == {"go_left", "go_right"}
    assert "selection" not in result["identity"]


def test_missing_demonstrations_are_named(compare, tmp_path):
    status, _, error = compare(*ENTRIES, data=tmp_path / "nothing")
    assert status == 1
    assert f"no data set at {tmp_path / 'nothing'}" in error


def test_an_interrupted_run_goes_on_and_comes_out_the_same(demonstrations, tmp_path, capsys):
    length = ["--steps", "40", "--episodes", "1", "--no-speed", "--seeds", "0"]
    command = ["compare", "--data", str(demonstrations), *ENTRIES[:2], *length, "--out"]
    metrics = tmp_path / "cut/runs/moe-seed0/metrics.jsonl"

    def interrupt_in_the_middle():
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 1):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_in_the_middle, daemon=True).start()
    assert main([*command, str(tmp_path / "cut")]) == 130
    assert "keeps what was finished, the same command goes on from there" in capsys.readouterr().err
    assert not list((tmp_path / "cut").glob("results/*"))
    assert (tmp_path / "cut/runs/moe-seed0/state").exists()

    for name in ("cut", "whole"):
        assert main([*command, str(tmp_path / name)]) == 0
    cut, whole = (results(tmp_path / name)["moe-seed0"] for name in ("cut", "whole"))
    assert cut["checkpoint_sha256"] == whole["checkpoint_sha256"]
    assert cut["outcomes"] == whole["outcomes"]


def test_two_processes_do_not_do_the_same_run(compare, tmp_path):
    from moe_robot.data.durable import only_writer

    with only_writer(tmp_path / "out/runs/moe-seed0"):
        status, _, error = compare(*ENTRIES[:2], "--seeds", "0")
    assert status == 1
    assert "is being written by another process" in error
