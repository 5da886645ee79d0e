"""An evaluation shared out among several processes: merged once, whoever dies, and equal to that of one process."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_robot.evaluation import evaluate
from moe_robot.processes import Rank
from moe_robot.types import UserError

FORK = multiprocessing.get_context("fork")  # a rank then starts at once: what it loads is loaded here
SLOW = {"slow_s": 0.003}


def start(folder: Path, out: Path, rank: int, **arguments):
    process = FORK.Process(target=evaluate, args=(folder,), kwargs={"out": out, "rank": Rank(rank, 2), **arguments})
    process.start()
    return process


def finished_lines(out: Path) -> list[str]:
    """The whole lines of all journals, without their headers."""
    found = []
    for path in sorted(out.glob("episodes*.jsonl")):
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue  # put together with the others meanwhile
        found += [line for line in text[: text.rfind("\n")].splitlines()[1:] if line]
    return found


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_ranks_that_are_killed_lose_nothing_and_count_nothing_twice(checkpoint, tmp_path, told, kills):
    out, chance = tmp_path / "shared", random.Random(3)
    arguments = {"episodes": 6 * kills, "knockouts": ["language"], "environment_options": SLOW}
    ranks = [start(checkpoint, out, rank, **arguments) for rank in (0, 1)]
    kept: set[str] = set()
    for _ in range(kills):
        before = len(finished_lines(out))
        while len(finished_lines(out)) < before + 2:
            time.sleep(0.03)
        time.sleep(chance.uniform(0.0, 0.05))
        kept |= set(finished_lines(out))
        assert not (out / "report.json").exists(), "it was over before the last kill: the test shows less than it says"
        victim = chance.randrange(2)
        ranks[victim].kill()
        ranks[victim].join()
        ranks[victim] = start(checkpoint, out, victim, **arguments)
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    lines = (out / "episodes.jsonl").read_text().splitlines()[1:]
    assert kept <= set(lines), "a finished episode was played again"
    played = [tuple(json.loads(line)[key] for key in ("task", "seed", "knockout")) for line in lines]
    assert len(played) == len(set(played)) == 2 * 3 * 6 * kills
    evaluate(checkpoint, out=tmp_path / "alone", **arguments)
    assert told(out) == told(tmp_path / "alone")
    assert sorted(path.name for path in out.iterdir()) == ["episodes.jsonl", "report.html", "report.json"]


def test_the_living_do_the_share_of_the_dead(checkpoint, tmp_path, told):
    out = tmp_path / "shared"
    lost = start(checkpoint, out, 0, episodes=8, environment_options=SLOW)
    while len(finished_lines(out)) < 3:
        time.sleep(0.03)
    lost.kill()
    lost.join()
    evaluate(checkpoint, out=out, episodes=8, environment_options=SLOW, rank=Rank(1, 2))
    evaluate(checkpoint, out=tmp_path / "alone", episodes=8, environment_options=SLOW)
    assert told(out) == told(tmp_path / "alone")


def test_one_process_goes_on_with_what_ranks_have_finished(checkpoint, tmp_path):
    out = tmp_path / "shared"
    ranks = [start(checkpoint, out, rank, episodes=8, environment_options=SLOW) for rank in (0, 1)]
    while len(finished_lines(out)) < 6:
        time.sleep(0.03)
    for rank in ranks:
        rank.kill()
        rank.join()
    kept = finished_lines(out)
    evaluate(checkpoint, out=out, episodes=8, environment_options=SLOW)
    assert set(kept) <= set(finished_lines(out))
    assert len(finished_lines(out)) == 24


def test_a_finished_evaluation_is_left_to_a_rank_that_comes_late(checkpoint, tmp_path):
    first = evaluate(checkpoint, out=tmp_path / "out", episodes=2)
    before = (tmp_path / "out/report.json").read_text()
    late = evaluate(checkpoint, out=tmp_path / "out", episodes=2, rank=Rank(1, 2))
    assert late.episodes == first.episodes
    assert (tmp_path / "out/report.json").read_text() == before
    with pytest.raises(UserError, match="holds a finished evaluation with fewer episodes"):
        evaluate(checkpoint, out=tmp_path / "out", episodes=3, rank=Rank(1, 2))
    (checkpoint / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(UserError, match="holds a finished evaluation with another checkpoint"):
        evaluate(checkpoint, out=tmp_path / "out", episodes=2, rank=Rank(1, 2))


def test_torchrun_gives_the_report_of_one_process(checkpoint, tmp_path, told):
    out = tmp_path / "shared"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "moe_robot", "eval", str(checkpoint), "--episodes", "4", "--video", "1", "--out", str(out)]
    done = subprocess.run([*torchrun, *command], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("go_left") == 1, "the table is printed by one rank"
    evaluate(checkpoint, out=tmp_path / "alone", episodes=4, video=1)
    assert told(out) == told(tmp_path / "alone")
    assert json.loads((out / "report.json").read_text())["machine"]["ranks"] == 2


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_local_workers_that_are_killed_lose_nothing_and_count_nothing_twice(
    checkpoint, tmp_path, told, signpost, reaper, kills
):
    played = {"episodes": 5 * kills, "policy_factory": signpost.SignpostPolicy.from_pretrained}
    with reaper(kills, every=4, within_s=0.05, seed=11) as deaths:

        def count(episode, finished, total):
            deaths.done = finished

        slow = {"slow_s": 0.005}
        evaluate(checkpoint, out=tmp_path / "killed", workers=2, progress=count, environment_options=slow, **played)
    assert deaths.killed == kills
    assert len(finished_lines(tmp_path / "killed")) == 3 * 5 * kills
    evaluate(checkpoint, out=tmp_path / "alone", environment_options={"slow_s": 0.005}, **played)
    assert told(tmp_path / "killed") == told(tmp_path / "alone")


def test_a_process_alone_has_no_rank():
    assert Rank.of({}) is None
    assert Rank.of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert Rank.of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Rank(3, 4, 1)
    assert "RANK" not in os.environ
