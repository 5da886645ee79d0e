"""``moe-robot extract``: a small checkpoint for one sentence, or one line that says why not."""

import numpy as np
import pytest

from moe_policies.policy import MultimodalPolicy
from moe_robot.cli import main
from moe_robot.registry import load_policy
from moe_robot.types import Features, FeatureStatistics, Observation

SMALL = {"width": 32, "hidden": 32, "stem_channels": 8, "patches": 2, "glimpses": 2}
SENTENCE = "press the red button"


@pytest.fixture(params=["instruction", "token"])
def checkpoint(tmp_path, request):
    features = Features({"front": (48, 48)}, ("j1.pos", "gripper.pos"), ("x", "gripper"), 10)
    sizes = {"observation.images.front": 3, "observation.state": 2, "action": 2}
    statistics = {
        key: FeatureStatistics(np.full(n, 0.4), np.full(n, 0.3), np.zeros(n), np.ones(n), 1) for key, n in sizes.items()
    }
    policy = MultimodalPolicy.from_preset(
        "moe", features, statistics, [SENTENCE, "pick up the cube"], routing_unit=request.param, **SMALL
    )
    policy.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


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
