"""Puts the tests' plug-in (an environment and a policy with entry points) where Python finds it, in workers too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_policies.policy import MultimodalPolicy
from moe_robot.registry import environment_features, make_environment
from moe_robot.types import FeatureStatistics

PLUGIN = Path(__file__).parent / "plugin"
SMALL = {"width": 16, "hidden": 8, "heads": 2, "stem_channels": 8, "patches": 1, "glimpses": 2}
STEP0 = {"vision": {"vision": 0.9, "language": 0.1}, "language": {"vision": 0.3, "language": 0.7}}


@pytest.fixture(autouse=True, scope="session")
def signpost(plugged_in):
    """The plug-in of these tests."""
    with plugged_in(PLUGIN) as module:
        yield module


@pytest.fixture
def make_checkpoint(tmp_path):
    """A function that writes a checkpoint folder of the plug-in's policy with these config keys."""

    def make(train: dict | None = None, **config) -> Path:
        folder = tmp_path / "run" / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"policy": "signpost", "preset": "signpost", **config}))
        (folder / "model.safetensors").write_bytes(b"weights")
        if train is not None:
            (folder / "train.json").write_text(json.dumps(train))
        return folder

    return make


@pytest.fixture
def checkpoint(make_checkpoint):
    """A good policy with a gate, trained in the plug-in's world."""
    return make_checkpoint(
        {"environment": "signpost/Signpost-v0", "routing": {"step0": STEP0}, "steps": 500, "seed": 1}, blunder=0.2
    )


@pytest.fixture
def save(tmp_path):
    """A function that saves an untrained policy of a preset for the world of doors."""

    def save(preset="moe", **overrides):
        env = make_environment("signpost")
        features = environment_features(env)
        env.close()
        sizes = {"observation.images.front": 3, "observation.images.wrist": 3, "observation.state": 1, "action": 1}
        statistics = {
            key: FeatureStatistics(np.zeros(n), np.ones(n), np.zeros(n), np.ones(n), 1) for key, n in sizes.items()
        }
        torch.manual_seed(0)
        policy = MultimodalPolicy.from_preset(preset, features, statistics, ["go left"], **(SMALL | overrides))
        policy.save_pretrained(tmp_path / preset)
        return tmp_path / preset

    return save


@pytest.fixture
def told():
    """A function that reads a report without what the clock and the machine say."""

    def told(out: Path) -> dict:
        report = json.loads((out / "report.json").read_text())
        return {key: value for key, value in report.items() if key not in {"latency_ms", "control_step_ms", "machine"}}

    return told
