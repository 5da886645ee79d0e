"""scripts/train_metaworld.py: collect, train, evaluate, rounds of DAgger; what is done is not done again."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from moe_robot.cli import bench
from moe_robot.data.layout import read_info
from moe_robot.data.loader import open_dataset


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts/train_metaworld.py"
    spec = importlib.util.spec_from_file_location("train_metaworld", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, monkeypatch, out, *options):
    sizes = ["--tasks", "reach-v3", "--episodes", "3", "--steps", "2", "--eval-episodes", "1", "--dagger-episodes", "2"]
    more = ["--dagger-more", "1", "--dagger-steps", "2", "--image-size", "64", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", ["train_metaworld.py", *sizes, *more])
    return script.main()


def written(run):
    """When each policy and each report was written: of both evaluations and of the trial."""
    files = [*run.rglob("*.safetensors"), *run.rglob("report.json")]
    assert sum(file.name == "report.json" for file in files) == 3
    return {file: file.stat().st_mtime_ns for file in files}


def test_all_steps_and_a_round_and_nothing_twice(script, monkeypatch, tmp_path, capsys):
    assert run(script, monkeypatch, tmp_path / "run", "--render", "fast", "--dagger-rounds", "1") == 0
    made = written(tmp_path / "run")
    for name, episodes in (("demonstrations", 3), ("round-1/demonstrations", 2), ("round-1/more", 1)):
        data = open_dataset(tmp_path / "run" / name, 1, split="all")
        assert read_info(tmp_path / "run" / name).episodes == episodes
        assert data.provenance["noise"] == script.NOISE
        assert data.provenance["kicks"]["scale"] == script.KICK
        learner = data.provenance.get("learner", {})
        assert (learner.get("share"), learner.get("turn")) == ((script.SHARE, script.TURN) if learner else (None, None))
        assert bool(learner) == name.startswith("round-1")
    for folder in (tmp_path / "run", tmp_path / "run/round-1"):
        assert json.loads((folder / "report.json").read_text())["tier_mean"] is not None
    trial = json.loads((tmp_path / "run/round-1/trial/report.json").read_text())
    assert (trial["first_seed"], trial["overall"]["episodes"]) == (script.TRIAL_SEED, script.TRIAL_EPISODES)
    mixture = yaml.safe_load((tmp_path / "run/round-1/mixture.yaml").read_text())
    assert [part["data"] for part in mixture] == ["../demonstrations", "demonstrations", "more"]
    assert "finetuned_sha256" in json.loads((tmp_path / "run/round-1/policy/checkpoint/train.json").read_text())
    capsys.readouterr()
    assert run(script, monkeypatch, tmp_path / "run", "--dagger-rounds", "1") == 0  # auto keeps what was begun
    said = capsys.readouterr().out
    assert said.count("trained already") == 1
    assert said.count("evaluated already") == 2
    assert made == written(tmp_path / "run")


@pytest.mark.parametrize(("rate", "expected"), [(8.0, ()), (5000.0, ("render=full",))])
def test_own_pictures_are_taken_where_they_cost_nothing(script, monkeypatch, tmp_path, rate, expected):
    asked = []
    monkeypatch.setattr(bench, "bench_render", lambda of: asked.append(of) or {"frames_per_cpu_second": rate})
    pictures = ("image_size=64", "cameras=close")
    assert script.render_option("auto", tmp_path, pictures) == expected
    assert {"render=full", *pictures} < set(asked[0].env_options)
    (tmp_path / "demo.json").write_text(json.dumps({"env_options": ["control_hz=40", "render=full"]}))
    assert script.render_option("auto", tmp_path, pictures) == ("render=full",)
    assert len(asked) == 1
    assert script.render_option("fast", tmp_path, pictures) == ()
    assert script.render_option("full", tmp_path, pictures) == ("render=full",)
