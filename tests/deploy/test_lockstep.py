"""In lockstep a deployed policy does what it does in an evaluation, action by action: here over our own bridge."""

from dataclasses import replace

import lockstep
import numpy as np
import pytest
from commands import patient_contract

from moe_robot.cli import main
from moe_robot.deploy.backends.fake import FakeRobot
from moe_robot.deploy.chunks import Chunk
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.lockstep import LockstepLoop

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])


def test_a_trained_policy_gives_the_same_actions_over_a_bridge(command, tmp_path):
    actions, verdicts = lockstep.deployed(
        command, patient_contract(tmp_path), tmp_path / "run.mcap", "rosbridge", episodes=1
    )
    expected, ends = lockstep.evaluated(1)
    assert verdicts == ends
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


class Marked(FakeRobot):
    """A robot in memory whose messages bear a mark, which the test sets."""

    mark = "try 1 step 0"

    def receive(self, topic, message):
        super().receive(topic, message | {"header": message["header"] | {"frame_id": self.mark}})


class Answers:
    """A policy with two actions at a time, each with another number. It answers late, and may always be asked again."""

    failure, ready = None, True

    def __init__(self):
        self.asked, self.chunks, self.looks = 0, [], 0

    def ask(self, observation, observed):
        self.chunks.append(Chunk(np.array([[0.01 * self.asked, 0, 0, 0, k] for k in range(2)], float), observed))
        self.asked += 1
        return True

    def answer(self):
        self.looks += 1
        return self.chunks.pop(0) if self.chunks and self.looks % 5 == 0 else None


@pytest.fixture
def contract(pitstop):
    return replace(pitstop, state=tuple(name for name in pitstop.state if not name.endswith(".vel")))


@pytest.fixture
def driven(contract):
    """The robot, the gate in front of it, the loop, and a function that lets time pass and gives the steps taken."""
    robot, policy = Marked(contract, Q), Answers()
    guard = GuardedRobot(robot, contract)
    loop = LockstepLoop(guard, contract, policy, "pick up the red cube")

    def go_on(looks=40):
        taken = []
        for _ in range(looks):
            robot.advance(0.01)
            guard.beat()
            step = loop.look()
            taken += [step] if step and step.action is not None else []
        return taken

    go_on()
    assert guard.enable(live=True) is None
    return robot, guard, policy, go_on


def test_each_moment_is_answered_once_and_a_plan_is_played_before_the_next_question(driven):
    robot, _, policy, go_on = driven
    played = []
    for step in range(4):
        robot.mark = f"try 1 step {step}"
        taken = go_on()
        assert len(taken) == 1
        played.append(tuple(taken[0].action[[0, 4]]))
    assert played == [(0.0, 0.0), (0.0, 1.0), (0.01, 0.0), (0.01, 1.0)]
    assert policy.asked == 2
    assert [sent.command.mark for sent in robot.sent if not sent.hold] == sorted(
        sent.command.mark for sent in robot.sent
    )


def test_after_a_hold_the_moment_that_was_not_answered_is(driven):
    robot, guard, _, go_on = driven
    assert len(go_on()) == 1
    guard.trip("operator", "stop")
    robot.mark = "try 1 step 1"
    assert go_on() == []
    assert guard.state is State.HELD
    assert guard.enable(live=True) is None
    (step,) = go_on()
    assert step.action[4] == 1.0


def test_an_answer_that_nobody_moves_upon_is_sent_again_with_its_mark_and_shown_once(driven):
    robot, _, policy, go_on = driven
    assert len(go_on()) == 1
    assert go_on(100) == []
    answers = [sent.command for sent in robot.sent if not sent.hold]
    assert len(answers) >= 4
    assert {answer.mark for answer in answers} == {"try 1 step 0"}
    assert len({answer.opening for answer in answers}) == 1
    assert policy.asked == 1


def test_of_another_episode_nothing_counts_that_was_planned_before(driven):
    robot, _, _, go_on = driven
    go_on()
    robot.mark = "try 2 step 0"
    (step,) = go_on()
    assert (step.action[0], step.action[4]) == (0.01, 0.0)  # the beginning of a new plan


def test_what_is_not_of_one_moment_is_not_answered(driven):
    robot, _, _, go_on = driven
    assert len(go_on()) == 1
    robot.mark = ""
    assert go_on() == []


def test_lockstep_is_for_simulated_robots_only(capsys):
    given = ["deploy", str(lockstep.CHECKPOINT), "--contract", "pitstop", "--instruction", "x", "--lockstep"]
    assert main(given) == 1
    assert "--lockstep is for a simulated robot: add --enable-at-start" in capsys.readouterr().err
