"""The control loop on a robot in memory, with policies in this process and in one of their own."""

from dataclasses import replace

import numpy as np
import pytest
from bridge_server import wait_until
from hypothesis import given
from hypothesis import strategies as st

import policies
from moe_robot.deploy.backends import fake
from moe_robot.deploy.backends.fake import FakeRobot, Fault
from moe_robot.deploy.chunks import Chunk, ChunkBuffer, JoinedChunks
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.inference import PolicyProcess
from moe_robot.deploy.loop import ControlLoop
from moe_robot.deploy.timings import Timings
from moe_robot.types import Observation

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])


class Pondering:
    """A policy in this process that answers so many questions later."""

    def __init__(self, make=policies.pointing, delay=1):
        self.act, self.delay, self.asked, self.failure = make(), delay, [], None
        self.left = 0

    @property
    def ready(self):
        return not self.asked

    def ask(self, observation, observed):
        if self.asked:
            return False
        self.asked, self.left = [(observation, observed)], self.delay
        return True

    def answer(self):
        self.left -= 1
        if not self.asked or self.left > 0:
            return None
        observation, observed = self.asked.pop()
        return Chunk(self.act(observation), observed)


class Stage:
    """A robot in memory, guarded, with a loop."""

    def __init__(self, contract, policy, *faults, decay=0.01):
        state = tuple(name for name in contract.state if not name.endswith(".vel"))  # the robot tells none
        self.contract = replace(contract, state=state)
        self.robot = FakeRobot(self.contract, Q, faults)
        self.guard = GuardedRobot(self.robot, self.contract)
        self.loop = ControlLoop(self.guard, self.contract, policy, "turn the nut", decay)

    def step(self):
        self.robot.advance(self.contract.period_s)
        self.guard.beat()
        return self.loop.step()

    def until(self, time):
        steps = []
        while self.robot.now() < time - 1e-9:
            steps.append(self.step())
        return steps


def test_a_policy_moves_the_robot_where_its_actions_say(pitstop):
    stage = Stage(pitstop, Pondering())
    stage.until(0.5)
    assert stage.robot.sent == []
    assert stage.guard.enable(live=True) is None
    steps = stage.until(1.5)
    assert all(step.decision.failure is None for step in steps)
    start, end = (pitstop.chain.forward(q)[0] for q in (Q, stage.robot.positions))
    assert end[0] - start[0] > 0.1
    assert np.abs(end - start)[1:].max() < 0.01
    assert stage.robot.sent[-1].command.opening == pytest.approx(0.08)


def test_a_plan_of_before_the_robot_was_enabled_is_not_played(pitstop):
    stage = Stage(pitstop, Pondering(delay=4))
    stage.until(0.8)
    stage.guard.enable(live=True)
    first = stage.step()
    assert first.action is None
    assert first.decision.failure is None
    stage.until(2.0)
    assert stage.loop.step().action is not None
    stage.guard.trip("operator", "stop was pressed")
    stage.guard.enable(live=True)  # within one control step
    assert stage.step().action is None


def test_a_policy_that_says_nothing_more_stops_the_robot(pitstop):
    policy = Pondering()
    stage = Stage(pitstop, policy)
    stage.until(0.5)
    stage.guard.enable(live=True)
    stage.until(1.0)
    policy.delay = policy.left = 10**9
    steps = stage.until(4.0)
    held = next(step for step in steps if step.decision.state is State.HELD)
    assert held.decision.failure.rule == "policy"
    assert "it gave no action for" in held.decision.failure.message
    assert held.at <= 1.0 + 0.8 + pitstop.max_command_age_s + 2 * pitstop.period_s  # the chunk, patience, two steps
    assert stage.robot.sent[-1].hold


def test_a_policy_that_fails_stops_the_robot_at_once(pitstop):
    policy = Pondering()
    stage = Stage(pitstop, policy)
    stage.until(0.5)
    stage.guard.enable(live=True)
    stage.until(1.0)
    policy.failure = "RuntimeError: no such expert"
    assert "policy: RuntimeError: no such expert" in stage.step().decision.failure.message


def test_a_new_connection_forgets_all_plans(pitstop):
    stage = Stage(pitstop, Pondering(), Fault("disconnected", 1.01, 1.08))
    stage.until(0.5)
    stage.guard.enable(live=True)
    stage.until(1.0)
    assert stage.step().action is None
    assert stage.guard.state is State.HELD


def test_a_loop_that_was_late_leaves_steps_out_and_does_not_hurry(pitstop):
    stage = Stage(pitstop, Pondering())
    begun, late = [], [0.0, 0.0, 0.35, 0.0, 0.0, 0.0]

    def on_step(step):
        begun.append(step.at)
        stage.robot.advance(late[len(begun) - 1])

    stage.loop.run(lambda: len(begun) == 6, on_step, stage.robot.advance)
    np.testing.assert_allclose(np.diff(begun), [0.1, 0.1, 0.35, 0.05, 0.1], atol=0.011)  # a tick, and what Pace moves
    assert stage.loop.timings.summary()["late"]["max"] == pytest.approx(0.05, abs=0.006)
    assert {"sense", "decide", "gate and send", "step", "late"} <= set(stage.loop.timings.summary())


def test_each_action_of_a_chunk_is_played_in_its_time():
    buffer = ChunkBuffer(0.1, 1.0, decay=None)
    buffer.add(Chunk(np.arange(8.0)[:, None], observed=5.0))
    played = [buffer.action(5.0 + late) for late in (0.0, 0.04, 0.1, 0.26, 0.7)]
    assert [(float(action[0]), observed) for action, observed in played] == [(i, 5.0) for i in (0, 0, 1, 3, 7)]
    assert buffer.action(5.8) is None


def test_overlapping_chunks_are_blended_with_more_weight_on_the_older():
    buffer = ChunkBuffer(0.1, 1.0, decay=np.log(2))
    buffer.add(Chunk(np.full((8, 1), 6.0), observed=5.1))
    buffer.add(Chunk(np.full((8, 1), 3.0), observed=5.0))
    action, observed = buffer.action(5.2)
    assert (float(action[0]), observed) == (pytest.approx((3.0 + 6.0 / 2) / 1.5), 5.0)
    newest = ChunkBuffer(0.1, 1.0, decay=None)
    newest.add(Chunk(np.full((8, 1), 6.0), observed=5.1))
    newest.add(Chunk(np.full((8, 1), 3.0), observed=5.0))
    assert newest.action(5.2)[0] == 6.0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), max_size=8), st.floats(0, 4))
def test_no_action_ever_comes_from_a_chunk_that_is_too_old_or_over(chunks, now):
    buffer = ChunkBuffer(0.1, 0.5)
    for observed, length in chunks:
        buffer.add(Chunk(np.zeros((length, 1)), observed))
    live = [observed for observed, n in chunks if now - observed <= 0.5 and max(round((now - observed) / 0.1), 0) < n]
    action = buffer.action(now)
    assert (action is None) == (not live)
    assert action is None or action[1] == min(live)


def test_a_new_chunk_takes_over_step_by_step_and_what_was_planned_while_the_policy_thought_stays():
    plan = JoinedChunks(0.1, 1.0, steps=3)
    assert plan.action(5.0) is None
    plan.add(Chunk(np.arange(8.0)[:, None], observed=5.0))
    played = [plan.action(5.0 + late)[0][0] for late in (0.0, 0.1, 0.2)]
    assert played == [0.0, 1.0, 2.0]
    plan.add(Chunk(np.full((8, 1), 10.0), observed=5.2))  # the answer is there at 5.3
    plan.add(Chunk(np.full((8, 1), 99.0), observed=5.1))  # and one to an older observation, which is not played
    after = [plan.action(5.0 + late) for late in (0.3, 0.4, 0.5, 0.6, 0.7)]
    assert [float(action[0]) for action, _ in after] == pytest.approx([4.75, 7.0, 8.75, 10.0, 10.0])
    assert [observed for _, observed in after] == [5.0, 5.0, 5.0, 5.2, 5.2]


@given(st.integers(1, 6), st.integers(1, 5), st.lists(st.floats(-1, 1), min_size=60, max_size=60))
def test_however_plans_differ_joined_ones_jump_less_than_they_do(every, steps, offsets):
    joined, newest = JoinedChunks(0.1, 5.0, steps), ChunkBuffer(0.1, 5.0, None)
    played = []
    for k in range(60):
        if k % every == 0:
            for plan in (joined, newest):
                plan.add(Chunk(np.full((30, 1), offsets[k]), observed=0.1 * k))
        played.append([float(plan.action(0.1 * k)[0][0]) for plan in (joined, newest)])
    jumps = np.abs(np.diff(played, axis=0)).max(axis=0)
    assert jumps[0] <= jumps[1] + 1e-9 or every <= steps  # a plan that is not taken over yet is left behind sooner
    assert np.max(np.abs(played)) <= max(map(abs, offsets)) + 1e-9


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), max_size=8), st.floats(0, 4))
def test_no_joined_action_ever_comes_from_a_chunk_that_is_too_old_or_over(chunks, now):
    plan, kept = JoinedChunks(0.1, 0.5, 3), []
    for observed, length in chunks:
        plan.add(Chunk(np.zeros((length, 1)), observed))
        if not kept or observed > kept[-1][0]:
            kept.append((observed, length))
    live = [observed for observed, n in kept if now - observed <= 0.5 and max(round((now - observed) / 0.1), 0) < n]
    action = plan.action(now)
    assert (action is None) == (not live)
    assert action is None or action[1] in live


class Timed:
    """Thinks for so many seconds of the robot's clock."""

    failure = None

    def __init__(self, robot, seconds):
        self.robot, self.seconds, self.asked = robot, seconds, None

    @property
    def ready(self):
        return self.asked is None

    def ask(self, observation, observed):
        if self.asked is not None:
            return False
        self.asked = observed, self.robot.now() + self.seconds
        return True

    def answer(self):
        if self.asked is None or self.robot.now() < self.asked[1]:
            return None
        observed, self.asked = self.asked[0], None
        return Chunk(policies.pointing()(None), observed)


def test_a_picture_that_comes_between_two_steps_is_answered_at_the_next(pitstop, monkeypatch):
    monkeypatch.setattr(fake, "TICK_S", 0.001)
    stage = Stage(pitstop, None, decay=None)
    stage.loop._policy = Timed(stage.robot, 0.06)
    stage.robot.advance(0.08)  # so that steps begin 20 ms before each picture
    steps, sent = [], []

    def on_step(step):
        steps.append(step)
        sent.append(len(stage.robot.sent))
        stage.guard.beat()
        if len(steps) == 3:
            assert stage.guard.enable(live=True) is None

    stage.loop.run(lambda: len(steps) == 10, on_step, stage.robot.advance)
    ages = [step.at - step.observed for step in steps if step.observed is not None]
    assert len(ages) >= 6
    assert max(ages) == pytest.approx(0.08, abs=0.005)  # asked only at steps it would be 0.18
    assert ages[-1] == pytest.approx(0.07, abs=0.005)  # the loop comes nearer to the answers
    np.testing.assert_allclose(np.diff([step.at for step in steps]), 0.1, atol=0.006)
    assert np.diff(sent).max() == 1  # between steps nothing is sent
    assert stage.loop.timings.summary()["observation to command"]["max"] == pytest.approx(0.08, abs=0.005)


def test_of_a_new_and_an_old_picture_no_observation_is_made(pitstop, monkeypatch):
    monkeypatch.setattr(fake, "TICK_S", 0.001)
    slow = replace(pitstop.cameras["wrist"], rate_hz=4.0, max_age_s=0.6)
    asked = []

    class Noting(Timed):
        def ask(self, observation, observed):
            asked.append(observed)
            return super().ask(observation, observed)

    stage = Stage(replace(pitstop, cameras=pitstop.cameras | {"wrist": slow}, max_skew_s=0.5), None)
    stage.loop._policy = Noting(stage.robot, 0.01)
    stage.loop.run(lambda: stage.robot.now() > 2.0, lambda step: stage.guard.beat(), stage.robot.advance)
    assert 7 <= len(asked) <= 9  # as often as the slower camera tells something
    assert np.diff(asked) == pytest.approx(0.25, abs=0.11)


def test_timings_are_percentiles_of_what_was_added():
    timings, rng = Timings(), np.random.default_rng(0)
    durations = rng.lognormal(-7, 1, 5000)
    for seconds in [*durations, 0.0, 1e9]:
        timings.add("gate", float(seconds))
    summary = timings.summary()["gate"]
    assert (summary["n"], summary["max"]) == (5002, 1e9)
    for percent in (50, 95, 99):
        assert summary[f"p{percent}"] == pytest.approx(np.percentile(durations, percent), rel=0.08)


@pytest.fixture
def think():
    """Makes started policies in processes of their own, and ends them."""
    started = []

    def make(policy):
        started.append(PolicyProcess(policy))
        started[-1].start()
        return started[-1]

    yield make
    for process in started:
        process.stop()


OBSERVATION = Observation({"front": np.zeros((96, 96, 3), np.uint8)}, np.array([1.0, 2.0], np.float32), "go")


def test_a_policy_in_its_own_process_answers_what_it_was_asked(think):
    process = think(policies.echoing)
    assert not process.ask(OBSERVATION, 0.5)  # it is not loaded yet
    wait_until(lambda: process.ready, "loading")
    assert process.ask(OBSERVATION, 1.5)
    assert not process.ask(OBSERVATION, 2.5)
    chunks = []
    wait_until(lambda: chunks.append(process.answer()) or chunks[-1] is not None, "the answer")
    np.testing.assert_array_equal(chunks[-1].actions, [[2.0, 1.0, 2.0]])
    assert chunks[-1].observed == 1.5
    assert process.answer() is None
    assert process.ready


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (policies.failing, "RuntimeError: no such expert"),
        (policies.unloadable, "FileNotFoundError: no weights here"),
        (policies.misshapen, "ValueError: the policy gave actions of shape (5,), expected (H, A)"),
        (policies.dying, "the policy's process ended"),
    ],
)
def test_a_policy_that_breaks_is_told_in_one_line(think, policy, says):
    process = think(policy)
    wait_until(lambda: process.ask(OBSERVATION, 0.0) or process.failure, "the question")
    wait_until(lambda: process.answer() is None and process.failure, "the failure")
    assert process.failure == says
    assert not process.ask(OBSERVATION, 0.0)


def test_a_policy_that_hangs_with_the_interpreter_lock_delays_neither_loop_nor_stop(think, pitstop):
    process = think(policies.hanging)
    wait_until(lambda: process.ready, "loading")
    stage = Stage(pitstop, process)
    stage.until(0.5)
    assert stage.guard.enable(live=True) is None
    steps = stage.until(2.0)  # it hangs from its first question on
    assert len(steps) == 15
    assert steps[-1].decision.failure.rule == "policy"
    assert not process.ready
    process.stop()


def test_the_policy_is_not_asked_twice_about_the_same_observation(pitstop):
    policy, asked = Pondering(delay=0), []
    stage, ask = Stage(pitstop, policy, Fault("dropped", 1.0, 2.0)), policy.ask
    policy.ask = lambda observation, observed: asked.append(observed) or ask(observation, observed)
    stage.until(3.0)
    assert len(asked) == len(set(asked)) > 10
    assert max(np.diff(asked)) > 0.9  # nothing new came, and then it goes on
