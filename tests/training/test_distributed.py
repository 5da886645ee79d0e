"""Several processes train what one would, experts divided or not, and a run may change hands between them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from moe_robot.training.config import TrainConfig
from moe_robot.training.state import load
from moe_robot.training.train import train

_spec = importlib.util.spec_from_file_location("teams", Path(__file__).with_name("teams.py"))
teams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(teams)

SMALL = ("width=16", "hidden=8", "heads=2", "layers=2", "stem_channels=4", "patches=2", "glimpses=2", "chunk=2",
         "execute=1", "experts={vision: 2, arm: 1, language: 1}")  # fmt: skip
EVENTFUL = (
    "bias_rate=0.01", "cold_after=2", "revive=true", "sensor_dropout=0.2", "gate_noise=true", "load_weight=0.01",
    "importance_weight=0.01", "z_weight=0.001", "gate_jitter=0.01", "head=flow",
)  # fmt: skip
TOLERANCE = 1e-4


def config(demonstrations, out, **changes) -> TrainConfig:
    return TrainConfig(
        **({"data": demonstrations, "out": out, "batch_size": 8, "precision": "fp64", "config": SMALL, "steps": 20,
            "warmup": 5} | changes)
    )  # fmt: skip


def losses(out: Path) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]


def assert_same(one: Path, many: Path) -> None:
    assert losses(many) == pytest.approx(losses(one), abs=TOLERANCE)
    (a, values), (b, others) = load(one), load(many)
    assert set(a) == set(b)
    assert values["step"] == others["step"]
    for name in a:
        assert torch.allclose(a[name].double(), b[name].double(), atol=TOLERANCE, rtol=0), name


@pytest.fixture(autouse=True)
def _log_every_step(monkeypatch):
    monkeypatch.setattr("moe_robot.training.train.LOG_EVERY", 1)


@pytest.mark.parametrize(
    ("settings", "shapes", "changes"),
    [
        ((), ((2, 1), (4, 2)), {"accumulate": 2}),
        (EVENTFUL, ((2, 2), (4, 4)), {}),
        (("gate_choice=expert",), ((2, 1),), {"steps": 6}),
        (("capacity_factor=0.8", "routing_unit=segment", "gate_noise=true"), ((2, 2),), {"steps": 6}),
    ],
    ids=["plain", "eventful", "expert-choice", "capacity"],
)
def test_many_processes_give_the_losses_and_weights_of_one(demonstrations, tmp_path, settings, shapes, changes):
    changes = {"config": SMALL + settings, **changes}
    train(config(demonstrations, tmp_path / "one", **changes))
    for size, experts in shapes:
        many = tmp_path / f"{size}-{experts}"
        teams.run(config(demonstrations, many, **changes, expert_parallel=experts), size)
        assert_same(tmp_path / "one", many)
