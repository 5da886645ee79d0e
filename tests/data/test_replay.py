"""Open-loop replay of recorded episodes, and the way of a data set that lerobot wrote: train, then replay."""

import json
from pathlib import Path

import numpy as np
import pytest
from lerobot_environment import run_lerobot
from sample_episodes import FEATURES, length, vectors, write_dataset

from moe_robot.cli import main
from moe_robot.data.loader import open_dataset
from moe_robot.data.replay import replay_episodes
from moe_robot.registry import load_policy
from moe_robot.types import Features, UserError

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"
TINY = ("width=32", "hidden=16", "stem_channels=8", "patches=2", "glimpses=2", "chunk=4", "execute=1", "shift=1")


class Parrot:
    """Plans the recorded actions it was given, plus an offset."""

    def __init__(self, features, chunks, offset=0.0):
        self.features, self.chunks, self.offset, self.at = features, chunks, offset, 0

    def reset(self):
        pass

    def action_chunk(self, observation):
        self.at += 1
        return self.chunks[self.at - 1] + np.float32(self.offset)


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_dataset(tmp_path / "data", 6), 3, split="all")


def chunks(dataset):
    return dataset.batch(np.arange(len(dataset)))["action"]


def test_who_plans_what_was_done_makes_no_error(dataset):
    replay = replay_episodes(Parrot(dataset.features, chunks(dataset)), dataset)
    assert replay.error_A.tolist() == [0.0, 0.0]
    assert [each.episode for each in replay.episodes] == list(range(6))
    assert [len(each.planned_NA) for each in replay.episodes] == [length(e) for e in range(6)]
    assert all(np.nanmax(each.error_HA) == 0 for each in replay.episodes)


def test_an_offset_is_the_error_and_constant_actions_are_the_measure(dataset):
    replay = replay_episodes(Parrot(dataset.features, chunks(dataset), 0.5), dataset)
    np.testing.assert_allclose(replay.error_A, [0.5, 0.5], rtol=1e-5)
    actions = np.concatenate([vectors(e)[1] for e in range(6)]).astype(np.float32)
    constant = np.abs(actions - np.median(actions, axis=0)).mean(axis=0)
    np.testing.assert_allclose(replay.share_A, 0.5 / constant, rtol=1e-5)
    assert json.loads(json.dumps(replay.to_json()))["episodes"][3]["frames"] == length(3)


def test_steps_beyond_the_end_of_an_episode_do_not_count(dataset):
    wrong_at_the_end = chunks(dataset)
    wrong_at_the_end[dataset.batch(np.arange(len(dataset)))["action_is_pad"]] += 9
    replay = replay_episodes(Parrot(dataset.features, wrong_at_the_end), dataset)
    assert all(np.nanmax(each.error_HA) == 0 for each in replay.episodes)


def test_what_does_not_fit_is_refused(dataset):
    other = Features({"front": (24, 32)}, FEATURES.state_names, ("dx", "other"), 10)
    with pytest.raises(UserError, match=r"does not fit .*action is \(dx, dy\), expected \(dx, other\)"):
        replay_episodes(Parrot(other, []), dataset)
    with pytest.raises(UserError, match="episode 9 is not among the 6 that are open"):
        replay_episodes(Parrot(dataset.features, chunks(dataset)), dataset, [9])


def train_and_replay(data, out, steps, config=TINY):
    options = ["--preset", "moe", "--out", str(out), "--steps", str(steps), "--batch-size", "16", "--precision", "fp32"]
    assert main(["train", "--data", str(data), *options, "--config", *config]) == 0
    policy = load_policy(out)
    return replay_episodes(policy, open_dataset(data, policy.config.chunk, split="all"), [3])


def test_a_set_that_lerobot_wrote_trains_and_its_checkpoint_replays_it(tmp_path):
    replay = train_and_replay(SAMPLE, tmp_path / "run", 2)
    assert [len(each.planned_NA) for each in replay.episodes] == [200]
    assert np.isfinite(replay.error_A).all()


@pytest.mark.full
def test_another_robot_of_lerobots_is_learned_without_a_line_of_code(tmp_path):
    """Six joints, two cameras of other names and sizes, in AV1: the policy comes to do what was done."""
    run_lerobot([{"write": str(tmp_path / "so101"), "kind": "libsvtav1"}])
    replay = train_and_replay(tmp_path / "so101", tmp_path / "run", 300, (*TINY, "ignore_state=[]"))
    assert len(replay.action_names) == 6
    assert (replay.share_A < 0.5).all(), replay.share_A
