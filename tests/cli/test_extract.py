"""``moe-robot extract``: a small checkpoint for one sentence, or one line that says why not."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from moe_policies.policy import MultimodalPolicy
from moe_robot.cli import main
from moe_robot.registry import environment_features, load_policy, make_environment
from moe_robot.types import Features, FeatureStatistics, Observation

SMALL = {"width": 32, "hidden": 32, "stem_channels": 8, "patches": 2, "glimpses": 2}
SENTENCE = "press the red button"


def saved(folder: Path, features: Features, routing_unit: str) -> Path:
    sizes = {f"observation.images.{camera}": 3 for camera in features.cameras}
    sizes |= {"observation.state": len(features.state_names), "action": len(features.action_names)}
    statistics = {
        key: FeatureStatistics(np.full(n, 0.4), np.full(n, 0.3), np.zeros(n), np.ones(n), 1) for key, n in sizes.items()
    }
    policy = MultimodalPolicy.from_preset(
        "moe", features, statistics, [SENTENCE, "pick up the cube"], routing_unit=routing_unit, **SMALL
    )
    policy.save_pretrained(folder)
    return folder


@pytest.fixture(params=["instruction", "token"])
def checkpoint(tmp_path, request):
    features = Features({"front": (48, 48)}, ("j1.pos", "gripper.pos"), ("x", "gripper"), 10)
    return saved(tmp_path / request.param, features, request.param)


def test_a_small_policy_is_saved_that_acts_like_the_full_one(checkpoint, tmp_path, capsys):
    out = tmp_path / "small"
    status = main(["extract", str(checkpoint), "--instruction", SENTENCE, "--out", str(out)])
    told = capsys.readouterr()
    if checkpoint.name == "token":
        assert status == 1
        assert "expected one trained with routing_unit=instruction" in told.err
        assert not out.exists()
        return
    assert status == 0
    assert "parameters" in told.out
    seen = Observation({"front": np.full((48, 48, 3), 90, np.uint8)}, np.ones(2, np.float32), SENTENCE)
    full, small = load_policy(checkpoint), load_policy(out)
    assert np.abs(full.select_action(seen) - small.select_action(seen)).max() < 1e-5
    assert main(["extract", str(checkpoint), "--instruction", SENTENCE, "--out", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_an_empty_instruction_is_refused(tmp_path, capsys):
    assert main(["extract", str(tmp_path), "--instruction", " ", "--out", str(tmp_path / "o")]) == 1
    assert "--instruction is empty" in capsys.readouterr().err


@pytest.fixture
def in_pointworld(tmp_path, monkeypatch):
    """A full policy of the tests' tiny world, whose sentences vary, and the small one that was cut out of it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "data/plugin"))
    importlib.import_module("pointworld").register()
    env = make_environment("pointworld/Point-v0")
    full = saved(tmp_path / "full", environment_features(env), "instruction")
    env.close()
    assert main(["extract", str(full), "--instruction", SENTENCE, "--out", str(tmp_path / "small")]) == 0
    return full, tmp_path / "small"


def test_a_policy_that_was_cut_out_is_evaluated_with_its_one_sentence(in_pointworld, tmp_path, capsys):
    full, small = in_pointworld
    where = ["--env", "pointworld/Point-v0", "--tasks", "go_left,stay", "--episodes", "2"]
    assert main(["eval", str(small), *where, "--out", str(tmp_path / "refused")]) == 1
    refusal = capsys.readouterr().err
    assert f'--instruction "{SENTENCE}"' in refusal
    assert len(refusal.splitlines()) == 1
    assert not (tmp_path / "refused").exists()

    reports = {}
    for policy in (full, small):
        out = tmp_path / f"{policy.name}-evaluation"
        assert main(["eval", str(policy), *where, "--instruction", SENTENCE, "--out", str(out)]) == 0
        assert f'all told "{SENTENCE}"' in " ".join(capsys.readouterr().out.split())
        reports[policy.name] = json.loads((out / "report.json").read_text())
        played = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()[1:]]
        assert [row["sentence"] for row in played] == [SENTENCE] * 4
        assert f"was told <q>{SENTENCE}</q>" in (out / "report.html").read_text()
    for task in ("go_left", "stay"):  # the same network, so the same episodes
        one, other = (reports[name]["tasks"][task] for name in ("full", "small"))
        assert (one["outcomes"], one["episode_steps"]) == (other["outcomes"], other["episode_steps"])
    assert reports["small"]["instruction"] == SENTENCE


def test_another_sentence_than_its_own_is_refused_with_the_one_to_give(in_pointworld, tmp_path, capsys):
    arguments = ["--env", "pointworld/Point-v0", "--instruction", "pick up the cube", "--out", str(tmp_path / "out")]
    assert main(["eval", str(in_pointworld[1]), *arguments]) == 1
    assert f"got 'pick up the cube'; to evaluate it give `moe-robot eval` the option --instruction \"{SENTENCE}\"" in (
        capsys.readouterr().err
    )
