"""Several processes train what one would, experts divided or not, and a run may change hands between them."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from moe_robot.registry import load_policy
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
    "importance_weight=0.01", "z_weight=0.001", "gate_jitter=0.01", "head=flow", "picture_heights=[16, 24]",
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


def revived(out: Path) -> list[tuple[int, str]]:
    events = [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "event" in line]
    return [(line["step"], line["event"]["expert"]) for line in events if line["event"]["kind"] == "revived"]


def assert_same(one: Path, many: Path) -> None:
    assert revived(many) == revived(one)
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
def test_many_processes_give_the_losses_and_weights_of_one(
    demonstrations, tmp_path, monkeypatch, settings, shapes, changes
):
    monkeypatch.setattr("moe_robot.moe.balance.COLD", 0.97)  # so that experts turn cold within these few steps
    changes = {"config": SMALL + settings, **changes}
    train(config(demonstrations, tmp_path / "one", **changes))
    assert bool(revived(tmp_path / "one")) == ("revive=true" in settings)
    for size, experts in shapes:
        many = tmp_path / f"{size}-{experts}"
        teams.run(config(demonstrations, many, **changes, expert_parallel=experts), size)
        assert_same(tmp_path / "one", many)


def _stop_at_3(progress):
    if progress.step == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("before", "after"), [((2, 2), (1, 1)), ((1, 1), (4, 2))], ids=["to-one", "to-many"])
def test_a_run_goes_on_with_other_processes_and_another_division_of_the_experts(
    demonstrations, tmp_path, before, after
):
    whole = config(demonstrations, tmp_path / "whole", steps=6)
    train(whole)
    first = dataclasses.replace(whole, out=tmp_path / "run", expert_parallel=before[1])
    if before[0] == 1:
        with pytest.raises(KeyboardInterrupt):
            train(first, _stop_at_3)
    else:
        for process in (team := teams.start(first, before[0], _stop_at_3)):
            process.join()
        assert [process.exitcode for process in team] == [1, 130]  # the second leaves it to the first to say so
    assert load(first.out)[1]["step"] == (3 if before[0] == 1 else 4)  # many agree on it a step later
    rest = dataclasses.replace(first, resume=True, expert_parallel=after[1])
    if after[0] == 1:
        train(rest)
    else:
        teams.run(rest, after[0])
    assert_same(whole.out, rest.out)


def test_the_policy_of_divided_experts_is_one_file_that_acts(demonstrations, tmp_path):
    """All experts are in it, also those that the process which wrote it never held."""
    run = config(demonstrations, tmp_path / "run", steps=2, expert_parallel=2)
    teams.run(run, 2)
    policy = load_policy(tmp_path / "run")
    averaged = load(run.out, lambda name: name.startswith("average/"))[0]
    for name, weight in policy.state_dict().items():
        assert torch.allclose(weight.double(), averaged[f"average/{name}"].double(), atol=1e-6), name
    record = json.loads((run.out / "checkpoint" / "train.json").read_text())
    assert record["complete"]
    assert record["processes"] == 2


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (2, {"expert_parallel": 2, "preset": "dense-active"}, "--expert-parallel: this policy has no experts"),
        (
            3,
            {"batch_size": 6, "expert_parallel": 3},
            "--expert-parallel: 4 experts cannot be divided among 3",
        ),
        (2, {"batch_size": 5}, "--batch-size 5 cannot be divided among 2 processes"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(demonstrations, tmp_path, size, changes, message):
    run = config(demonstrations, tmp_path / "run", steps=2, **changes)
    run.out.mkdir()
    for process in (team := teams.start(run, size)):
        process.join()
    assert {process.exitcode for process in team} == {1}
    assert any(message in (run.out / f"failed-{rank}").read_text() for rank in range(size))


def test_bf16_goes_the_same_way(demonstrations, tmp_path):
    """Rows travel as bf16; what two processes compute is within its rounding of what one does."""
    run = config(demonstrations, tmp_path / "one", steps=3, precision="bf16")
    train(run)
    teams.run(dataclasses.replace(run, out=tmp_path / "two", expert_parallel=2), 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.02)
