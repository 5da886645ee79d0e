"""Replay: a policy is asked about a recording, and its actions are compared with what was recorded."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bags import TASK, Q, write

from moe_robot.cli import main
from moe_robot.deploy import checkpoint
from moe_robot.deploy.backends.fake import FakeRobot
from moe_robot.deploy.bag_steps import RecordedSteps
from moe_robot.deploy.chunks import Chunk
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.loop import ControlLoop
from moe_robot.deploy.mcap_file import McapFile
from moe_robot.deploy.recorded import Tap, instruction
from moe_robot.deploy.recorder import _Recording
from moe_robot.evaluation.replayed import replay
from moe_robot.types import Observation, RecordedStep, UserError


def act(observation):
    """Five actions that follow from everything that is observed: pictures, state and sentence."""
    looks = [float(pixels.astype(float).mean()) for pixels in observation.images.values()]
    base = np.array([np.sin(sum(looks)), observation.state[0], observation.state.sum(), len(observation.task) / 100, 1])
    return 0.02 * base + 0.001 * np.arange(8)[:, None]


def steady(observation):
    """The same action always."""
    return np.tile([0.05, 0.01, 0.02, 0.0, 0.5], (8, 1))


class Slow:
    """Answers so many control steps after it was asked."""

    failure, ready = None, True

    def __init__(self, delay, policy):
        self.delay, self.policy, self.left, self.asked = delay, policy, 0, None

    def ask(self, observation, observed):
        if self.asked is None:
            self.asked, self.left = (self.policy(observation), observed), self.delay
            return True
        return False

    def answer(self):
        self.left -= 1
        if self.asked is None or self.left > 0:
            return None
        answered, self.asked = self.asked, None
        return Chunk(*answered)


@pytest.fixture
def contract(pitstop):
    return replace(pitstop, state=tuple(name for name in pitstop.state if not name.endswith(".vel")))


@pytest.fixture
def recorded(contract, tmp_path):
    """A recording of a robot that ``act`` moved for three seconds; without the raw actions where asked for."""

    def record(raw=True, live=True, delay=3, policy=act):
        path = tmp_path / f"{raw}{live}.mcap"
        robot, tap, entries = FakeRobot(contract, Q), Tap(contract, 1.7e9), [instruction(TASK, 0.0)]
        guard = GuardedRobot(robot, contract, lambda decision, now: entries.extend(tap.decision(decision, now)))
        loop = ControlLoop(guard, contract, Slow(delay, policy), TASK, None)
        while robot.now() < 3.0:
            robot.advance(contract.period_s)
            guard.beat()
            if robot.now() > 0.45:
                guard.enable(live)
            entries += tap.step(loop.step())
        file = _Recording(McapFile(path, {}))
        for entry in sorted(entries, key=lambda entry: entry.at):
            if raw or entry.topic != "/moe_robot/action":
                file._add(entry.topic, entry.kind, entry.message, round((entry.at + 1.7e9) * 1e9))
        file.close()
        return path

    return record


@pytest.mark.parametrize("delay", [1, 3, 6])
def test_the_policy_that_was_recorded_answers_the_same_again(contract, recorded, delay):
    steps = RecordedSteps(recorded(delay=delay), contract, None)
    replayed = replay(act, steps.names, steps)
    assert steps.what == "actions"
    assert steps.task == TASK
    assert len(replayed.times) > (4 if delay == 6 else 15)  # of 8 planned actions the first 6 come too late
    assert replayed.skipped == 0
    np.testing.assert_allclose(replayed.answered, replayed.recorded, atol=1e-12)
    assert np.ptp(replayed.recorded, axis=0)[:3].min() > 1e-5  # and it is not always the same


def test_another_policy_is_as_far_away_as_it_is(contract, recorded):
    steps = RecordedSteps(recorded(), contract, None)
    replayed = replay(lambda observation: act(observation) + np.array([0, 0, 0.25, 0, 0]), steps.names, steps, most=9)
    rows = {row["name"]: row for row in replayed.rows()}
    assert len(replayed.times) == 9
    assert rows["hand.dz"]["mean"] == rows["hand.dz"]["max"] == pytest.approx(0.25)
    assert rows["hand.dx"]["max"] < 1e-12


@pytest.mark.parametrize("live", [True, False])
def test_where_no_actions_were_recorded_the_commands_that_they_become_are_compared(contract, recorded, live):
    path = recorded(raw=False, live=live, policy=steady)
    steps = RecordedSteps(path, contract, None)
    assert steps.what == "commands"
    assert steps.names == (*(f"joint{i}" for i in range(1, 8)), "gripper command")
    replayed = replay(steady, steps.names, steps)
    assert len(replayed.times) > 15
    np.testing.assert_allclose(replayed.answered, replayed.recorded, atol=1e-9)
    steps = RecordedSteps(path, contract, None)
    other = replay(lambda observation: -steady(observation), steps.names, steps)
    assert all(row["mean"] > 0.001 for row in other.rows() if row["name"] in ("joint1", "joint2", "gripper command"))


def test_a_recording_of_another_tool_needs_an_instruction_and_commands(contract, tmp_path):
    path = write(tmp_path / "bag", contract, "sqlite")
    with pytest.raises(UserError, match="nothing says what the robot was told"):
        RecordedSteps(path, contract, None)


def test_steps_of_one_observation_ask_once_and_what_lies_beyond_the_plan_is_counted():
    asked, one = [], Observation({}, np.zeros(1, np.float32), "go")

    def count(observation):
        asked.append(observation)
        return np.arange(4.0)[:, None]

    steps = [RecordedStep(one, np.array([2.0]), 0.1 * i, ahead=i) for i in range(6)]
    replayed = replay(count, ("x",), steps)
    assert len(asked) == 1
    assert replayed.skipped == 2
    assert replayed.rows()[0] == {
        "name": "x", "mean": 1.0, "share": None, "max": 2.0, "max_at": 0.0, "max_episode": 0,
        "recorded_min": 2.0, "recorded_max": 2.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="nothing was recorded"):
        replay(count, ("x",), [])
    with pytest.raises(ValueError, match="1 numbers were recorded for 2 names"):
        replay(count, ("x", "y"), steps)


def test_the_verb_prints_a_table_or_json_and_draws(contract, recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "load_act", lambda folder, contract, task: act)
    monkeypatch.setattr("moe_robot.deploy.contract.load_contract", lambda name: contract)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text("{}")
    monkeypatch.setattr("moe_robot.deploy.checkpoint.policy_directory", lambda path: path)
    arguments = ["replay", str(recorded()), "--policy", str(tmp_path / "policy"), "--contract", "pitstop"]
    assert main([*arguments, "--plot", str(tmp_path / "plot.png")]) == 0
    table = capsys.readouterr().out
    assert f"actions, {TASK!r}" in table
    assert "hand.dyaw" in table
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json", "--most", "5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["compared"]) == (5, "actions")
    assert max(entry["max"] for entry in result["entries"]) < 1e-12
    assert main([*arguments, "--most", "0"]) == 1
    assert main([*arguments, "--plot", "x.pdf"]) == 1
    assert "ends with .png" in capsys.readouterr().err
