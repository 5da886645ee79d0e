"""The main job for real, small: PitStop, demonstrations, training, rollouts, report."""

import json

import pytest

from moe_robot.cli import demo

SMALL = demo.Options(
    episodes_per_task=4,
    minutes=0.1,
    eval_episodes=2,
    knockout="language",
    knockout_episodes=1,
    video=1,
    workers=2,
    config=("width=32", "hidden=16", "layers=2", "stem_channels=8", "patches=2", "glimpses=2"),
)
TASKS = {"press_red", "press_green", "press_blue", "pick_red_cube", "pick_blue_cube"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("demo")
    assert demo.run(replace(SMALL, out=folder)) == 0
    return folder


def test_the_report_has_every_number_with_its_interval_and_seeds(out):
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 3
    assert (report["preset"], report["env"], report["instructions"]) == ("moe", "moe_robot/PitStop-v0", "seen")
    assert len(report["checkpoint_sha256"]) == 64
    assert set(report["tasks"]) == TASKS
    for row in [*report["tasks"].values(), report["overall"]]:
        low, high = row["ci95"]
        assert 0 <= low <= row["success_rate"] <= high <= 1
        assert row["success_rate"] == row["successes"] / row["episodes"]
    assert all(row["seeds"] == [100_000, 100_001] for row in report["tasks"].values())
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"] <= report["latency_ms"]["max"]
    assert {"torch", "mujoco", "gymnasium", "numpy", "moe_robot"} <= set(report["versions"])


def test_the_scene_of_the_demonstrations_goes_with_the_checkpoint_into_the_report(out):
    record = json.loads((out / "policy" / "checkpoint" / "train.json").read_text())
    assert record["environment_options"] == {"objects": "demo"}
    assert json.loads((out / "report.json").read_text())["env_options"] == {"objects": "demo"}


def test_the_report_shows_routing_at_the_start_beside_the_end_and_the_knock_out(out):
    report = json.loads((out / "report.json").read_text())
    for table in (report["routing"], report["routing_step0"]):
        assert set(table) == {"vision", "arm", "grasp", "language"}
        assert all(sum(shares.values()) == pytest.approx(1.0) for shares in table.values())
    row = report["knockouts"]["language"]
    assert row["episodes"] == 5
    assert row["difference_ci95"][0] <= row["difference"] <= row["difference_ci95"][1]


def test_every_task_was_filmed(out):
    assert len(list((out / "videos").glob("*.mp4"))) == 5
    page = (out / "report.html").read_text()
    assert page.count("<video") == 5


def test_running_it_again_does_nothing_twice(out, capsys):
    from dataclasses import replace

    before = (out / "policy" / "state").stat().st_mtime_ns
    assert demo.run(replace(SMALL, out=out)) == 0
    assert (out / "policy" / "state").stat().st_mtime_ns == before
    assert "already" in capsys.readouterr().out
