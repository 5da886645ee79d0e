"""Open-loop replay of recorded episodes, and the way of a data set that lerobot wrote: train, then replay."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from lerobot_environment import run_lerobot
from sample_episodes import FEATURES, images, length, vectors, write_dataset

from moe_robot.cli import main
from moe_robot.data.loader import open_dataset
from moe_robot.data.replay import recorded_steps
from moe_robot.evaluation.replayed import replay

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"
TINY = ("width=32", "hidden=16", "stem_channels=8", "patches=2", "glimpses=2", "chunk=4", "execute=1", "shift=1")


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_dataset(tmp_path / "data", 6), 3, split="all")


def test_every_frame_of_every_episode_is_a_step(dataset):
    steps = list(recorded_steps(dataset))
    at = [(episode, frame) for episode in range(6) for frame in range(length(episode))]
    assert [(step.episode, step.time, step.ahead) for step in steps] == [(e, f / FEATURES.fps, 0) for e, f in at]
    for step, (episode, frame) in zip(steps, at, strict=True):
        states, actions = vectors(episode)
        np.testing.assert_array_equal(step.recorded, actions[frame].astype(np.float32))
        np.testing.assert_array_equal(step.observation.state, states[frame].astype(np.float32))
        np.testing.assert_array_equal(step.observation.images["front"], images(episode, frame)["front"])
        assert step.observation.task == f"sentence {episode % 3}"


def test_a_plan_is_compared_with_as_many_actions_as_are_asked_for_and_never_beyond_an_episode(dataset):
    asked = []

    def plan(observation):
        """What was done from the frame on that shows this state, and nonsense after the end."""
        states, actions = zip(*(vectors(episode) for episode in range(6)), strict=True)
        for episode in range(6):
            frame = np.flatnonzero((states[episode].astype(np.float32) == observation.state).all(axis=1))
            if len(frame):
                asked.append((episode, int(frame[0])))
                return np.concatenate([actions[episode][frame[0] :], np.full((9, 2), 99.0)]).astype(np.float32)
        raise AssertionError("a state that was never recorded")

    replayed = replay(plan, FEATURES.action_names, recorded_steps(dataset, every=3))
    assert asked == [(episode, frame) for episode in range(6) for frame in range(0, length(episode), 3)]
    np.testing.assert_array_equal(replayed.answered, replayed.recorded)
    assert len(replayed.times) == sum(length(e) for e in range(6))


def test_an_offset_is_the_error_and_constant_answers_are_the_measure(dataset):
    actions = np.concatenate([vectors(e)[1] for e in range(6)])
    each = iter(actions)
    rows = replay(lambda _: next(each)[None] + 0.5, FEATURES.action_names, recorded_steps(dataset)).rows()
    constant = np.abs(actions - np.median(actions, axis=0)).mean(axis=0)
    assert [row["mean"] for row in rows] == pytest.approx([0.5, 0.5])
    assert [row["share"] for row in rows] == pytest.approx(0.5 / constant)


def train(data, out, steps, *more):
    options = ["--preset", "moe", "--out", str(out), "--steps", str(steps), "--batch-size", "16", "--precision", "fp32"]
    assert main(["train", "--data", str(data), *options, *more, "--config", *TINY, "ignore_state=[]"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set that lerobot wrote, and a policy that learned two steps of it."""
    return train(SAMPLE, tmp_path_factory.mktemp("trained") / "run", 2)


def told(capsys, *arguments):
    status = main(["replay", *map(str, arguments), "--json"])
    said = capsys.readouterr()
    return json.loads(said.out) if status == 0 else said.err.strip()


def test_a_set_that_lerobot_wrote_trains_and_its_checkpoint_replays_it(trained, tmp_path, capsys):
    found = told(capsys, SAMPLE, "--policy", trained, "--episodes", "3,5", "--plot", tmp_path / "plot.png")
    assert (found["steps"], found["episodes"], found["skipped"]) == (400, 2, 0)
    assert found["instruction"] == "push the puck to the goal"
    assert all(np.isfinite(row["mean"]) for row in found["entries"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["replay", str(SAMPLE), "--policy", str(trained), "--most", "30"]) == 0
    assert "30 actions, 'push the puck to the goal'" in capsys.readouterr().out


def test_an_exported_policy_replays_as_the_one_that_it_was_made_from(trained, tmp_path, capsys):
    assert main(["export", str(trained), "--out", str(tmp_path / "exported")]) == 0
    capsys.readouterr()
    found = [told(capsys, SAMPLE, "--policy", p, "--most", 5) for p in (trained, tmp_path / "exported")]
    assert [row["mean"] for row in found[1]["entries"]] == pytest.approx(
        [row["mean"] for row in found[0]["entries"]], rel=1e-4
    )


def test_a_mixture_is_replayed_under_the_names_it_was_trained_with(trained, tmp_path, capsys):
    (tmp_path / "mix.yaml").write_text(f"- {{data: {SAMPLE}, episodes: 1-2}}\n- {{data: {SAMPLE}, episodes: '4'}}\n")
    found = told(capsys, tmp_path / "mix.yaml", "--policy", trained, "--every", 4, "--most", 450)
    assert (found["steps"], found["episodes"], found["skipped"]) == (450, 3, 0)
    found = told(capsys, SAMPLE, "--policy", trained, "--every", 5, "--most", 8, "--stream")
    assert found["skipped"] == 2 - 1  # the plan has four actions: the fifth frame of each round is left out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--rename", "corner2=front"), "does not fit .*camera 'corner2' is missing"),
        (("--contract", "pitstop"), "--contract is for recordings of a robot"),
        (("--episodes", "70"), "has no episode 70"),
        (("--every", "0"), "--every 0: expected 1 or more"),
        (("--cameras", "corner3"), "did you mean corner2"),
        (("--tasks", ","), "--tasks names none"),
    ],
)
def test_a_mistake_is_one_line(trained, capsys, arguments, line):
    said = told(capsys, SAMPLE, "--policy", trained, *arguments)
    assert "\n" not in said
    assert re.search(line, said), said


def test_what_is_for_demonstrations_is_refused_for_a_recording(trained, tmp_path, capsys):
    said = told(capsys, tmp_path / "run.mcap", "--policy", trained, "--episodes", "0", "--contract", "pitstop")
    assert "--episodes is for demonstrations" in said
    assert "say --contract" in told(capsys, tmp_path / "run.mcap", "--policy", trained)


@pytest.mark.full
def test_another_robot_of_lerobots_is_learned_without_a_line_of_code(tmp_path, capsys):
    """Six joints, two cameras of other names and sizes, in AV1: the policy comes to do what was done."""
    run_lerobot([{"write": str(tmp_path / "so101"), "kind": "libsvtav1"}])
    train(tmp_path / "so101", tmp_path / "run", 300)
    capsys.readouterr()
    found = told(capsys, tmp_path / "so101", "--policy", tmp_path / "run")
    assert (found["episodes"], len(found["entries"])) == (5, 6)
    assert all(row["share"] < 0.5 for row in found["entries"]), found["entries"]
