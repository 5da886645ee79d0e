"""One network for many environments: the same episodes, whoever plays them and whoever dies."""

import json
import subprocess
import sys

import pytest

from moe_policies.policy import MultimodalPolicy
from moe_robot.evaluation import evaluate
from moe_robot.types import UserError


def routes(results):
    return [(e.routing.counts_LME.tolist(), e.routing.top_LME.tolist()) for e in results.episodes]


def bits(results):
    """What shows the last bits of every pass of the network: the gate's entropies."""
    return [e.routing.entropy_LM.tolist() for e in results.episodes]


def test_answered_together_the_episodes_are_those_of_a_policy_asked_alone(save, tmp_path, told):
    played = {"environment": "signpost", "episodes": 3, "knockouts": ["vision"], "sensors_off": ["front"], "video": 1}
    folder = save(sensor_dropout=0.1)
    alone = evaluate(folder, out=tmp_path / "alone", **played)
    together = evaluate(folder, out=tmp_path / "together", envs=4, **played)
    assert together.episodes == alone.episodes
    assert together.knockouts == alone.knockouts
    assert together.sensors_off == alone.sensors_off
    assert routes(together) == routes(alone)
    assert told(tmp_path / "together") == told(tmp_path / "alone")
    machine = json.loads((tmp_path / "together/report.json").read_text())["machine"]
    assert (machine["workers"], machine["envs"]) == (1, 4)
    for episode in together.episodes:
        assert len(episode.latency_ms) == -(-episode.steps // MultimodalPolicy.from_pretrained(folder).steps_per_plan)
        assert len(episode.step_ms) == episode.steps


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_neither_the_number_of_processes_nor_their_deaths_change_one_bit(save, tmp_path, reaper, kills):
    folder, played = save(), {"environment": "signpost", "episodes": 4 * kills, "envs": 5}
    quiet = evaluate(folder, out=tmp_path / "quiet", workers=1, **played)
    with reaper(kills, every=2, within_s=0.05, seed=7) as deaths:

        def count(episode, finished, total):
            deaths.done = finished

        slow = {"slow_s": 0.002}
        disturbed = evaluate(
            folder, out=tmp_path / "killed", workers=2, progress=count, environment_options=slow, **played
        )
    assert deaths.killed == kills
    assert disturbed.episodes == quiet.episodes
    assert bits(disturbed) == bits(quiet)
    lines = (tmp_path / "killed/episodes.jsonl").read_text().splitlines()[1:]
    assert len(lines) == len(quiet.episodes), "an episode was counted twice"


def test_an_environment_that_kills_every_worker_is_named(save, tmp_path):
    with pytest.raises(
        UserError, match=r"task go_left seed 10000\d: 3 workers died over this episode or one beside it"
    ):
        evaluate(
            save(),
            "signpost",
            out=tmp_path / "out",
            tasks="go_left",
            episodes=2,
            envs=2,
            environment_options={"crash_seed": 100_001},
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"envs": 0}, "--envs is 0"), ({"envs": 2, "workers": 3}, "--workers 3 is more than --envs 2")],
)
def test_more_processes_than_environments_are_refused(save, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate(save(), "signpost", out=tmp_path / "out", **arguments)


def test_a_policy_that_answers_one_robot_at_a_time_is_told_apart(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"SignpostPolicy answers one observation at a time .* leave --envs away"):
        evaluate(checkpoint, out=tmp_path / "out", envs=2)


def test_processes_with_environments_alone_need_no_torch():
    code = (
        "import sys, moe_robot.evaluation.ensemble; from moe_robot.registry import make_environment;"
        "make_environment('pitstop').close(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_in_a_process_names_the_episode(save, tmp_path):
    with pytest.raises(UserError, match=r"task go_left seed 10000\d: environment signpost/Silent-v0 does not judge"):
        evaluate(save(), "signpost/Silent-v0", out=tmp_path / "out", envs=2, episodes=2)
