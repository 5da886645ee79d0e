"""``moe-robot bench paired``: pairs by seed, and an interrupted one goes on where it stopped."""

import json

import pytest

from moe_robot.cli import main
from moe_robot.cli.bench import paired as bench_paired
from moe_robot.types import UserError

TASKS = "press_red,pick_red_cube"


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Seeds that were played, in order; after ``stop_after`` of them the machine is switched off."""
    seeds, limit = [], {"stop_after": 100}

    def play(checkpoint, task, sentence, first, episodes, transport, contract, log):
        assert sentence
        for seed in range(first, first + episodes):
            if len(seeds) == limit["stop_after"]:
                raise KeyboardInterrupt
            seeds.append((task, seed))
            result = "time out" if (task, seed) == ("press_red", 100_002) else "success"
            yield {"seed": seed, "result": result, "seconds": 1.5, "behind_s": 0.25}

    monkeypatch.setattr(bench_paired, "_play", play)
    monkeypatch.setattr(bench_paired, "_evaluated", lambda *given: [True] * given[-1])
    return seeds, limit


def measure(out, episodes=4, checkpoint="policy"):
    return bench_paired.measure(out.parent / checkpoint, out, TASKS, episodes, "rclpy", "pitstop", lambda line: None)


def test_it_goes_on_where_it_stopped_and_compares_pair_by_pair(played, tmp_path):
    seeds, limit = played
    limit["stop_after"] = 3
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "pairs")
    journal = tmp_path / "pairs/press_red.rclpy.jsonl"
    journal.write_text(journal.read_text() + '{"seed": 1000', encoding="utf-8")  # the line that was being written
    limit["stop_after"] = 100
    result = measure(tmp_path / "pairs")
    assert seeds == [(task, 100_000 + i) for task in TASKS.split(",") for i in range(4)]
    assert (result["pairs"], result["pairs_that_differ"], result["difference_points"]) == (8, 1, -12.5)
    low, high = result["ci95_points"]
    assert low < -12.5 < high <= 0
    assert result["real_time_left_out_s"] == 2.0
    measure(tmp_path / "pairs", episodes=5)
    assert seeds[8:] == [(task, 100_004) for task in TASKS.split(",")]


def test_pairs_of_another_policy_are_not_mixed_in(played, tmp_path):
    measure(tmp_path / "pairs")
    with pytest.raises(UserError, match="of another checkpoint or contract"):
        measure(tmp_path / "pairs", checkpoint="other")
    (tmp_path / "pairs/press_red.rclpy.jsonl").write_text(json.dumps({"seed": 7}) + "\n")
    with pytest.raises(UserError, match="not of this command"):
        measure(tmp_path / "pairs")


def test_what_the_simulated_robot_says_of_an_episode_is_understood():
    line = "episode 2/9: pick_red_cube, seed 100001, 'pick up, the red cube': time out after 10.0 s"
    assert bench_paired.EPISODE.search(line)["result"] == "time out"
    told = bench_paired.EPISODE.search(line + " (1.5 s of real time left out)")
    assert (told["seed"], told["behind"]) == ("100001", "1.5")


def test_it_wants_a_folder(capsys):
    assert main(["bench", "paired"]) == 1
    assert "needs --out FOLDER" in capsys.readouterr().err
