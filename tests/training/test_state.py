"""The state of a run survives a kill at any moment, of the process that writes it or of one that trains."""

import dataclasses
import importlib.util
import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from moe_robot.training.checkpoint import newest_state
from moe_robot.training.config import TrainConfig
from moe_robot.training.state import States, load, moments, restore_moments
from moe_robot.training.train import train
from moe_robot.types import UserError

_spec = importlib.util.spec_from_file_location("teams", Path(__file__).with_name("teams.py"))
teams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(teams)

KILLS = [5, pytest.param(50, marks=pytest.mark.full)]
SMALL = ("width=16", "hidden=8", "heads=2", "layers=2", "stem_channels=4", "patches=2", "glimpses=0", "chunk=2",
         "execute=1", "experts={vision: 2, arm: 1, language: 1}")  # fmt: skip


def config(demonstrations, out, **changes) -> TrainConfig:
    return TrainConfig(
        **({"data": demonstrations, "out": out, "batch_size": 8, "precision": "fp32", "config": SMALL, "warmup": 5}
           | changes)
    )  # fmt: skip


def _save_without_end(run: Path, begun, finished) -> None:
    """Saves one state after the other, all its tensors filled with the number of its step."""
    torch.set_num_threads(1)
    states, step = States(run, keep=2), begun.value
    while True:
        step += 1
        begun.value = step
        states.save(step, {f"w{i}": torch.full((2000,), float(step)) for i in range(4)}, {"step": step})
        states.wait()
        finished.value = step


@pytest.mark.parametrize("kills", KILLS)
def test_a_kill_of_the_writer_leaves_the_last_finished_state(tmp_path, kills):
    context = multiprocessing.get_context("fork")
    begun, finished = context.Value("i", 0), context.Value("i", 0)
    rng = random.Random(0)
    for _ in range(kills):
        target = finished.value + rng.randint(1, 4)
        writer = context.Process(target=_save_without_end, args=(tmp_path, begun, finished))
        writer.start()
        while finished.value < target and writer.is_alive():
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        writer.kill()
        writer.join()
        tensors, values = load(tmp_path)
        assert finished.value <= values["step"] <= begun.value
        assert all(bool((tensor == values["step"]).all()) for tensor in tensors.values())
    states = States(tmp_path, keep=2)
    step = begun.value + 1
    states.save(step, {"w": torch.zeros(1)}, {"step": step})
    states.wait()
    assert len(list((tmp_path / "state").iterdir())) == 2  # what the killed ones left half done is gone


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("kills", KILLS)
def test_a_run_goes_on_after_the_kill_of_any_of_its_processes(demonstrations, tmp_path, monkeypatch, kills):
    """What torchrun does with --max-restarts: all processes end, and are started again with a higher count."""
    monkeypatch.setattr("moe_robot.training.train.LOG_EVERY", 1)
    steps, rng = 5 * kills + 5, random.Random(1)
    run = config(demonstrations, tmp_path / "whole", steps=steps, expert_parallel=2)
    teams.run(run, 2)
    cut = dataclasses.replace(run, out=tmp_path / "cut", save_every=0.0)
    reached = multiprocessing.get_context("fork").Value("i", 0)

    def note(progress):
        time.sleep(0.02)  # so that no machine is through before it is killed
        reached.value = progress.step

    for attempt in range(kills):
        state = newest_state(cut.out)
        target = (int(state.name.removeprefix("step-")) if state else 0) + rng.randint(1, 3)
        reached.value = 0
        team = teams.start(cut, 2, note, restart=attempt)
        while reached.value < target and all(process.is_alive() for process in team):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.03)
        before = newest_state(cut.out)
        victim = rng.randrange(2)
        team[victim].kill()
        for process in team:
            process.join(timeout=120)
        assert team[victim].exitcode == -signal.SIGKILL
        assert team[1 - victim].exitcode == 1
        said = (cut.out / f"failed-{1 - victim}").read_text()
        assert "another of the 2 processes has ended or does not answer: the last saved state is kept" in said
        assert before is None or newest_state(cut.out) >= before
    teams.run(cut, 2, note, restart=kills)
    assert losses(cut.out) == losses(run.out)
    (a, _), (b, _) = load(run.out), load(cut.out)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_the_newest_states_are_kept(demonstrations, tmp_path):
    train(config(demonstrations, tmp_path / "run", steps=5, save_every=0.0, keep=3))
    assert [folder.name for folder in sorted((tmp_path / "run" / "state").iterdir())] == [
        f"step-{step:08d}" for step in (3, 4, 5)
    ]


def test_a_full_disk_is_told_and_leaves_the_state_before(demonstrations, tmp_path, monkeypatch):
    run = config(demonstrations, tmp_path / "run", steps=2)
    train(run)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemWriter.write_data", full)
    with pytest.raises(UserError, match=r"no space left for .*the last saved state is kept"):
        train(dataclasses.replace(run, steps=4, resume=True))
    assert load(run.out)[1]["step"] == 2
    assert not list((run.out / "state").glob("*.tmp"))


def test_what_the_optimiser_remembers_fits_both_ways_of_keeping_experts():
    from moe_robot.moe import ExpertBank

    banks = [ExpertBank(3, 4, 2, storage=storage) for storage in ("separate", "stacked")]
    banks[1].load_state_dict(banks[0].state_dict())
    optimisers = [torch.optim.AdamW(bank.parameters()) for bank in banks]
    rows = torch.randn(5, 4)
    for bank, optimiser in zip(banks, optimisers, strict=True):
        sum(bank[e](rows).square().sum() for e in range(3)).backward()
        optimiser.step()
    fresh = torch.optim.AdamW(banks[1].parameters())
    restore_moments(banks[1], fresh, moments(banks[0], optimisers[0]))
    for parameter in banks[1].parameters():
        for kind, value in optimisers[1].state[parameter].items():
            assert torch.allclose(fresh.state[parameter][kind], value, atol=1e-6)
