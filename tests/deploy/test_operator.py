"""The operator: what keys mean, and that heartbeats cease with the terminal."""

import os
import termios

import numpy as np
import pytest
from bridge_server import wait_until

from moe_robot.deploy.backends.fake import FakeRobot
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.operator import Keys, Operator
from moe_robot.deploy.robot_io import JointCommand

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])


@pytest.mark.parametrize(
    ("typed", "wishes"),
    [
        ("e\n", ["enable"]),
        ("e", []),
        ("ee\n", ["enable"]),
        ("\n", ["stop"]),
        (" ", ["stop"]),
        ("e \n", ["stop", "stop"]),
        ("ex\n", ["stop", "stop"]),
        ("x", ["stop"]),
        ("q", ["quit"]),
        ("eq\n", ["quit", "stop"]),
        ("e\n\n", ["enable", "stop"]),
    ],
)
def test_only_e_and_enter_enables_and_nearly_everything_stops(typed, wishes):
    keys = Keys()
    assert [wish for wish in map(keys.press, typed) if wish] == wishes


class Terminal:
    """A guarded robot in memory, and an operator who types into a pipe."""

    def __init__(self, contract, simulation=None, opened=os.pipe):
        self.io, self.said = FakeRobot(contract, Q), []
        self.guard = GuardedRobot(self.io, contract)
        self.io.advance(0.5)
        self.source, self.keyboard = opened()
        self.operator = Operator(self.guard, True, 0.01, self.said.append, simulation, self.source)
        self.operator.start()

    def type(self, text):
        os.write(self.keyboard, text.encode())

    def state(self, state):
        wait_until(lambda: self.guard.state is state, str(state))


@pytest.fixture
def terminal():
    made = []

    def make(*arguments):
        made.append(Terminal(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.operator.stop()


def test_typing_enables_stops_and_ends(terminal, pitstop):
    here = terminal(pitstop)
    here.type("e\n")
    here.state(State.ENABLED)
    assert not here.guard.dry_run
    here.type(" ")
    here.state(State.HELD)
    here.type("e\n")
    here.state(State.ENABLED)
    here.type("q")
    here.state(State.HELD)
    wait_until(lambda: here.operator.wants_to_quit, "the end")
    assert here.said == ["enabled", "enabled"]


def test_a_refusal_to_enable_is_shown(terminal, pitstop):
    here = terminal(pitstop)
    here.io.advance(0.01)
    here.io.latest = lambda: type(here.io)(pitstop, Q).latest()  # nothing has ever come
    here.type("e\n")
    wait_until(lambda: here.said, "the line")
    assert here.said[0].startswith("not enabled: freshness: no joint state has come")
    assert here.guard.state is State.DISABLED


def test_a_closed_terminal_stops_the_robot_and_nobody_beats_any_more(terminal, pitstop):
    here = terminal(pitstop)
    here.type("e\n")
    here.state(State.ENABLED)
    beats, beat = [], here.guard.beat
    here.guard.beat = lambda: beats.append(beat())
    wait_until(lambda: len(beats) > 3, "heartbeats")
    os.close(here.keyboard)
    here.state(State.HELD)
    wait_until(lambda: any("terminal was closed" in line for line in here.said), "the line")
    n = len(beats)
    here.operator._over.wait(0.1)
    assert len(beats) <= n + 1


def test_on_a_terminal_a_key_acts_without_enter_and_the_terminal_is_left_as_it_was(terminal, pitstop):
    here = terminal(pitstop, None, lambda: os.openpty()[::-1])
    wait_until(lambda: not termios.tcgetattr(here.source)[3] & termios.ICANON, "the mode")
    here.type("e\n")
    here.state(State.ENABLED)
    here.type(" ")
    here.state(State.HELD)
    here.operator.stop()
    assert termios.tcgetattr(here.source)[3] & termios.ICANON


def test_a_terminal_window_that_is_closed_stops_the_robot(terminal, pitstop):
    here = terminal(pitstop, None, lambda: os.openpty()[::-1])
    wait_until(lambda: not termios.tcgetattr(here.source)[3] & termios.ICANON, "the mode")
    here.type("e\n")
    here.state(State.ENABLED)
    os.close(here.keyboard)
    here.state(State.HELD)
    wait_until(lambda: any("terminal was closed" in line for line in here.said), "the line")


class Simulated:
    simulated, epoch = True, 1


def test_a_simulated_robot_is_enabled_once_on_every_connection(terminal, pitstop):
    simulation = Simulated()
    here = terminal(pitstop, simulation)
    here.state(State.ENABLED)
    here.type(" ")
    here.state(State.HELD)
    here.operator._over.wait(0.1)
    assert here.guard.state is State.HELD  # stopped is stopped
    simulation.epoch = 2
    here.state(State.ENABLED)
    os.close(here.keyboard)
    here.operator._over.wait(0.1)
    assert here.guard.state is State.ENABLED  # it needs no terminal


def test_a_simulated_robot_that_was_held_before_its_first_command_is_enabled_again_and_not_after_it(terminal, pitstop):
    here = terminal(pitstop, Simulated())
    here.state(State.ENABLED)
    here.guard.trip("watchdog", "the machine was slow")
    here.state(State.ENABLED)
    sensed = here.guard.sense()
    here.guard.step(JointCommand(sensed.newest.positions[None], None, here.guard.now()))
    assert here.guard.moved
    here.guard.trip("watchdog", "the machine was slow")
    here.operator._over.wait(0.1)
    assert here.guard.state is State.HELD


def test_what_does_not_say_that_it_is_simulated_is_not_enabled(terminal, pitstop):
    for answer in (False, None):
        simulation = Simulated()
        simulation.simulated = answer
        here = terminal(pitstop, simulation)
        here.operator._over.wait(0.1)
        assert here.guard.state is State.DISABLED
