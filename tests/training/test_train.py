"""Training: reproducible, resumable to the bit, loud, and it learns to look where the sentence says."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_robot.data.loader import open_dataset
from moe_robot.moe import Router
from moe_robot.registry import load_policy, parse_options, weights_sha256
from moe_robot.training.checkpoint import save_policy
from moe_robot.training.config import TrainConfig
from moe_robot.training.optimise import AveragedWeights, make_optimiser, schedule
from moe_robot.training.state import load
from moe_robot.training.train import train
from moe_robot.types import Observation, UserError

TINY = (
    "width=32",
    "hidden=16",
    "layers=2",
    "stem_channels=8",
    "patches=2",
    "glimpses=2",
    "chunk=1",
    "execute=1",
    "shift=1",
)


def config(demonstrations, out, **changes) -> TrainConfig:
    return TrainConfig(
        **({"data": demonstrations, "out": out, "batch_size": 16, "threads": 1, "config": TINY} | changes)
    )


def losses(config: TrainConfig, stop_at: int | None = None) -> list[float]:
    """Losses of each step; interrupted after ``stop_at`` steps."""
    seen: list[float] = []

    def on_progress(progress):
        seen.append(progress.loss)
        if progress.step == stop_at:
            raise KeyboardInterrupt

    if stop_at is None:
        train(config, on_progress)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(config, on_progress)
    return seen


def test_the_same_seed_gives_the_same_losses_and_another_does_not(demonstrations, tmp_path):
    a = losses(config(demonstrations, tmp_path / "a", steps=4))
    assert a == losses(config(demonstrations, tmp_path / "b", steps=4))
    assert a != losses(config(demonstrations, tmp_path / "c", steps=4, seed=1))


EVENTFUL = (
    "bias_rate=0.01",
    "cold_after=2",
    "revive=true",
    "sensor_dropout=0.2",
    "gate_noise=true",
    "capacity_factor=1.0",
    "picture_heights=[16, 24]",
)


@pytest.mark.parametrize("settings", [(), EVENTFUL], ids=["plain", "eventful"])
def test_a_resumed_run_continues_the_uninterrupted_one_to_the_bit(demonstrations, tmp_path, settings):
    changes = {"steps": 7, "config": TINY + settings}
    whole = losses(config(demonstrations, tmp_path / "whole", **changes))
    first = losses(config(demonstrations, tmp_path / "cut", **changes), stop_at=3)
    rest = losses(config(demonstrations, tmp_path / "cut", **changes, resume=True))
    assert first + rest == whole
    (a, of_whole), (b, of_cut) = (load(tmp_path / name) for name in ("whole", "cut"))
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert of_whole["routing_step0"] == of_cut["routing_step0"]


def test_a_resumed_run_must_be_the_same_run(demonstrations, tmp_path):
    run = config(demonstrations, tmp_path / "run", steps=2)
    train(run)
    with pytest.raises(UserError, match="holds a run already"):
        train(run)
    with pytest.raises(UserError, match=r"cannot resume: learning_rate was 0\.001"):
        train(dataclasses.replace(run, resume=True, learning_rate=1e-4))
    with pytest.raises(UserError, match="nothing to resume"):
        train(config(demonstrations, tmp_path / "new", steps=2, resume=True))


def test_a_damaged_state_is_named(demonstrations, tmp_path):
    run = config(demonstrations, tmp_path / "run", steps=1)
    train(run)
    (state,) = (tmp_path / "run" / "state").iterdir()
    for file in state.iterdir():
        file.write_bytes(b"half a file")
        with pytest.raises(UserError, match=r"step-00000001 cannot be read .*: begin again with another --out"):
            train(dataclasses.replace(run, resume=True))


def test_the_index_of_a_state_runs_no_code(demonstrations, tmp_path):
    run = config(demonstrations, tmp_path / "run", steps=1)
    train(run)
    (state,) = (tmp_path / "run" / "state").iterdir()
    (state / ".metadata").write_bytes(pickle.dumps(Path(tmp_path / "run").rmdir))
    with pytest.raises(UserError, match=r"cannot be read \(its index names builtins\.getattr\)"):
        train(dataclasses.replace(run, resume=True))


def test_a_state_of_an_older_version_is_told(demonstrations, tmp_path):
    run = config(demonstrations, tmp_path / "run", steps=1)
    run.out.mkdir()
    (run.out / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match="holds a run already"):
        train(run)
    with pytest.raises(UserError, match=r"state\.pt was saved by an older version"):
        train(dataclasses.replace(run, resume=True))


@pytest.mark.parametrize("preset", ["moe", "dense-active", "random"])
def test_the_checkpoint_acts_and_its_record_says_how_it_was_made(demonstrations, tmp_path, preset):
    train(config(demonstrations, tmp_path / "run", steps=2, preset=preset, seed=3))
    policy = load_policy(tmp_path / "run")
    action = policy.select_action(
        Observation({"front": np.zeros((32, 32, 3), np.uint8)}, np.zeros(2, np.float32), "go to the red one")
    )
    assert action.shape == (2,)
    record = json.loads((tmp_path / "run" / "checkpoint" / "train.json").read_text())
    assert record["environment"] == "nowhere/Patches-v0"
    assert record["environment_options"] == {"size": 32}
    assert (record["preset"], record["seed"], record["steps"], record["samples"]) == (preset, 3, 2, 32)
    if preset == "dense-active":
        assert record["routing"] == {"step0": None, "final": None}
    else:
        for moment in ("step0", "final"):
            assert sum(record["routing"][moment]["vision"].values()) == pytest.approx(1.0)


def test_it_learns_to_go_where_the_sentence_says(demonstrations, tmp_path):
    train(
        config(
            demonstrations, tmp_path / "run", steps=220, batch_size=32, learning_rate=3e-3, ema=0.98, precision="fp32"
        )
    )
    dataset = open_dataset(demonstrations, 1, split="validation")
    batch = dataset.batch(np.arange(len(dataset)))
    chunk = load_policy(tmp_path / "run").predict_action_chunk({k: v for k, v in batch.items() if "action" not in k})
    agree = np.sign(chunk[:, 0, 0].numpy()) == np.sign(batch["action"][:, 0, 0])
    assert agree.mean() > 0.9


def test_an_upcycled_run_begins_where_the_dense_one_ended(demonstrations, tmp_path):
    train(config(demonstrations, tmp_path / "dense", steps=30, preset="dense-active"))
    record = train(config(demonstrations, tmp_path / "moe", steps=5, config=(), upcycle=tmp_path / "dense"))
    dense, sparse = (load_policy(tmp_path / name) for name in ("dense", "moe"))
    assert sparse.config.feed_forward == "moe"
    assert record["parameters"] > sum(p.numel() for p in dense.parameters())
    first = json.loads((tmp_path / "moe" / "metrics.jsonl").read_text().splitlines()[0])
    start = json.loads((tmp_path / "dense" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["action_loss"] < 0.9 * start["action_loss"]
    with pytest.raises(UserError, match="is a mixture already"):
        train(config(demonstrations, tmp_path / "again", steps=5, config=(), upcycle=tmp_path / "moe"))


def test_a_finetuned_run_begins_where_the_other_ended(demonstrations, tmp_path):
    train(config(demonstrations, tmp_path / "first", steps=30, preset="dense-active"))
    further = config(
        demonstrations, tmp_path / "further", steps=5, config=(), finetune=tmp_path / "first", learning_rate=1e-4
    )
    record = train(further)
    assert record["preset"] == "dense-active"
    assert record["finetuned_sha256"] == weights_sha256(tmp_path / "first")
    first, last = (load_policy(tmp_path / name) for name in ("first", "further"))
    assert last.config == first.config
    begun = json.loads((tmp_path / "further" / "metrics.jsonl").read_text().splitlines()[0])
    start = json.loads((tmp_path / "first" / "metrics.jsonl").read_text().splitlines()[0])
    assert begun["action_loss"] < 0.9 * start["action_loss"]
    assert train(dataclasses.replace(further, steps=7, resume=True))["steps"] == 7
    with pytest.raises(UserError, match="cannot resume: finetuned_sha256"):
        train(dataclasses.replace(further, steps=8, resume=True, finetune=tmp_path / "further"))
    with pytest.raises(UserError, match="goes on with a policy as it is"):
        train(config(demonstrations, tmp_path / "again", steps=5, finetune=tmp_path / "first"))


def test_without_text_it_cannot_read(demonstrations, tmp_path):
    train(config(demonstrations, tmp_path / "run", steps=1, no_text=True))
    policy = load_policy(tmp_path / "run")
    assert policy.network.text is None


@pytest.mark.parametrize(
    ("preset", "message"),
    [("moe", "the gate's logits are not finite.*step"), ("dense-active", "the loss is (nan|inf)")],
)
def test_what_is_not_finite_stops_the_run(demonstrations, tmp_path, preset, message):
    changes = {"steps": 40, "learning_rate": 1e30, "warmup": 0, "clip": 1e30, "preset": preset}
    with pytest.raises(UserError, match=message):
        train(config(demonstrations, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "either --steps N or --minutes M"),
        ({"steps": 1, "minutes": 1.0}, "either"),
        ({"steps": 0}, "expected more than 0"),
        ({"steps": 1, "preset": "mow"}, "unknown preset 'mow': did you mean moe"),
        ({"steps": 1, "config": ("layrs=2",)}, "unknown policy config key 'layrs': did you mean layers"),
        ({"steps": 1, "config": ("layers",)}, "expected KEY=VALUE"),
        ({"steps": 1, "device": "gpu"}, "unknown device 'gpu'"),
        ({"steps": 1, "accumulate": 3}, "--batch-size 16 cannot be divided among 1 processes and 3 parts"),
        ({"steps": 1, "expert_parallel": 2}, "--expert-parallel 2 does not divide the 1 processes of torchrun"),
        ({"steps": 1, "keep": 0}, "--keep is 0, expected at least 1"),
        ({"steps": 1, "tasks": "rad"}, "unknown task of the data set 'rad': did you mean red"),
    ],
)
def test_bad_options_are_refused_in_one_line(demonstrations, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(config(demonstrations, tmp_path / "run", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_kill_while_saving_leaves_the_older_checkpoint(tmp_path):
    save_policy(tmp_path, lambda folder: (folder.mkdir(), (folder / "config.json").write_text("one")), {})

    def killed(folder):
        folder.mkdir()
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_policy(tmp_path, killed, {})
    assert (tmp_path / "checkpoint" / "config.json").read_text() == "one"
    save_policy(tmp_path, lambda folder: (folder.mkdir(), (folder / "config.json").write_text("two")), {})
    assert (tmp_path / "checkpoint" / "config.json").read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint"]


def test_the_schedule_warms_up_and_falls():
    assert schedule(0, 0.0, 10) == pytest.approx(0.1)
    assert schedule(100, 0.0, 10) == pytest.approx(1.0)
    assert schedule(100, 1.0, 10) == pytest.approx(0.02)
    values = [schedule(100, p / 10, 10) for p in range(11)]
    assert values == sorted(values, reverse=True)


def test_gates_learn_slower_and_do_not_decay():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4), Router(4, ("a", "b"), ("a",))])
    gate = make_optimiser(model, 1e-3, 0.1).param_groups[-1]
    assert {id(p) for p in gate["params"]} == {id(p) for p in model[1].parameters()}
    assert gate["rate"] < 1
    assert gate["weight_decay"] == 0
    assert make_optimiser(model, 1e-3, 0.1, gate_rate=0.5).param_groups[-1]["rate"] == 0.5


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, plain = make_optimiser(model, 1e-3, 0.1).param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert all(p.ndim == 1 for p in plain["params"])


def test_averaged_weights_follow_the_model():
    model = torch.nn.Linear(2, 2)
    average = AveragedWeights(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
    for step in range(200):
        average.update(model, step)
    assert torch.allclose(average.state["weight"], model.weight, atol=1e-3)


def test_settings_are_read_as_values():
    assert parse_options(("layers=2", "text=bundled:minilm", "experts={vision: 1}")) == {
        "layers": 2,
        "text": "bundled:minilm",
        "experts": {"vision": 1},
    }


def test_a_map_without_spaces_is_refused_with_how_to_write_it():
    with pytest.raises(UserError, match="space after the colon, as in"):
        parse_options(("experts={vision:8,arm: 2}",))
