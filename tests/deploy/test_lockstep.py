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

    mark = "a"

    def receive(self, topic, message):
        super().receive(topic, message | {"header": message["header"] | {"frame_id": self.mark}})


class Answers:
    """A policy that answers at once, two actions at a time, each with another number."""

    failure, ready = None, True

    def __init__(self):
        self.asked, self.chunk = 0, None

    def ask(self, observation, observed):
        self.chunk = Chunk(np.array([[0.01 * self.asked, 0, 0, 0, k] for k in range(2)], float), observed)
        self.asked += 1
        return True

    def answer(self):
        chunk, self.chunk = self.chunk, None
        return chunk


@pytest.fixture
def contract(pitstop):
    return replace(pitstop, state=tuple(name for name in pitstop.state if not name.endswith(".vel")))


@pytest.fixture
def driven(contract):
    """The robot, the gate in front of it, the loop, and a function that lets time pass and gives the steps taken."""
    robot, policy = Marked(contract, Q), Answers()
    guard = GuardedRobot(robot, contract)
    loop = LockstepLoop(guard, robot, contract, policy, "pick up the red cube")

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
    for mark in "abcd":
        robot.mark = mark
        taken = go_on()
        assert len(taken) == 1
        played.append(tuple(taken[0].action[[0, 4]]))
    assert played == [(0.0, 0.0), (0.0, 1.0), (0.01, 0.0), (0.01, 1.0)]
    assert policy.asked == 2
    assert len([sent for sent in robot.sent if not sent.hold]) == 4


def test_after_a_hold_the_moment_that_was_not_answered_is(driven):
    robot, guard, _, go_on = driven
    assert len(go_on()) == 1
    guard.trip("operator", "stop")
    robot.mark = "b"
    assert go_on() == []
    assert guard.state is State.HELD
    assert guard.enable(live=True) is None
    (step,) = go_on()
    assert step.action[4] == 1.0


def test_what_was_dropped_is_sent_again_and_shown_once(driven):
    robot, _, _, go_on = driven
    assert len(go_on()) == 1
    robot._inbox.count("commands dropped")
    assert go_on() == []
    assert len([sent for sent in robot.sent if not sent.hold]) == 2
    assert robot.sent[-1].command.opening == robot.sent[-2].command.opening


def test_what_is_not_of_one_moment_is_not_answered(driven):
    robot, _, _, go_on = driven
    assert len(go_on()) == 1
    robot.mark = ""
    assert go_on() == []


def test_lockstep_is_for_simulated_robots_only(capsys):
    given = ["deploy", str(lockstep.CHECKPOINT), "--contract", "pitstop", "--instruction", "x", "--lockstep"]
    assert main(given) == 1
    assert "--lockstep is for a simulated robot: add --enable-at-start" in capsys.readouterr().err
