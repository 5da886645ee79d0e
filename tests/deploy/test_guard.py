"""The gate, the watchdog and a robot together, with everything that goes wrong between them."""

import ast
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import moe_robot.deploy
from moe_robot.deploy.backends.fake import FakeRobot, Fault
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot, Watchdog
from moe_robot.deploy.robot_io import JointCommand

Q = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, 0.785])
FOLDER = Path(moe_robot.deploy.__file__).parent
BEGIN, END = 1.01, 2.01  # just after a control step

HARMLESS = ("duplicated", "permuted", "reordered")
NUMBERS = ("nan", "infinite")
PICTURES = ("wrong size", "wrong encoding", "garbage", "bomb")
TIMES = ("dropped", "late", "future", "nameless", "clock forward", "clock back", "frozen", "disconnected")


class Drive:
    """Drives a fake robot at its control rate, a hundredth of a radian per step, and notes when it was stopped."""

    def __init__(self, contract, *faults):
        self.contract, self.robot = contract, FakeRobot(contract, Q, faults)
        self.guard = GuardedRobot(self.robot, contract)
        self.decisions = []

    def step(self):
        self.robot.advance(self.contract.period_s)
        sensed = self.guard.sense()
        command = None
        if sensed.newest is not None:
            way = 0.01 if len(self.decisions) % 2 else -0.01
            command = JointCommand(sensed.newest.positions[None] + way, None, sensed.newest.sensed)
        self.guard.beat()
        self.decisions.append((self.robot.now(), self.guard.step(command)))
        return self.decisions[-1][1]

    def until(self, time):
        while self.robot.now() < time - 1e-9:
            self.step()


def begun(contract, *faults):
    drive = Drive(contract, *faults)
    drive.until(0.5)
    assert drive.guard.enable(live=True) is None
    return drive


@pytest.mark.parametrize("kind", [*NUMBERS, *PICTURES, *TIMES])
def test_a_fault_stops_the_robot_in_time_and_it_stays_stopped_until_enabled(pitstop, kind):
    source = pitstop.cameras["wrist"] if kind in PICTURES else pitstop.joint_states
    drive = begun(pitstop, Fault(kind, BEGIN, END, source.topic))
    drive.until(BEGIN - 0.01)
    assert drive.guard.state is State.ENABLED
    drive.until(END)
    stopped = next(at for at, decision in drive.decisions if decision.state is State.HELD)
    noticeable = BEGIN if kind in NUMBERS else BEGIN + source.max_age_s
    assert stopped <= noticeable + 2 * pitstop.period_s
    reason = drive.decisions[-1][1].failure
    assert reason.rule in (("finite",) if kind in NUMBERS else ("freshness", "skew"))
    drive.until(END + 1)
    assert drive.decisions[-1][1].failure == reason
    sent = drive.robot.sent
    assert all(command.at <= stopped for command in sent)
    assert [command.hold for command in sent[:-1]] == [False] * (len(sent) - 1)
    assert drive.guard.enable(live=True) is None
    assert drive.step().send is not None


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_does_no_harm_does_not_stop_the_robot(pitstop, kind):
    drive = begun(pitstop, Fault(kind, BEGIN, END, pitstop.joint_states.topic))
    drive.until(END + 1)
    assert drive.guard.state is State.ENABLED
    assert len(drive.robot.sent) == sum(decision.send is not None for _, decision in drive.decisions) > 20


def test_a_refused_picture_is_told_with_the_reason(pitstop):
    for kind, says in (
        ("wrong size", "the picture is 104x96, expected 96x96"),
        ("wrong encoding", "format 'png' is no JPEG or PNG of 8 bits per sample"),
        ("bomb", "the picture is 60000x60000, expected 96x96"),
        ("future", "stamped 10.000 s in the future; synchronise the clocks"),
    ):
        drive = begun(pitstop, Fault(kind, BEGIN, END, pitstop.cameras["front"].topic))
        drive.until(END)
        assert says in drive.robot.status().trouble
        assert drive.robot.status().counts["refused"] >= 9


def test_after_an_outage_no_command_of_before_comes_and_the_new_connection_must_be_enabled(pitstop):
    drive = begun(pitstop, Fault("disconnected", BEGIN, BEGIN + 0.1))  # too short for anything to grow old
    drive.until(BEGIN)
    before = len(drive.robot.sent)
    drive.until(END)
    assert len(drive.robot.sent) == before
    assert drive.decisions[-1][1].failure.rule in ("epoch", "freshness")
    assert drive.robot.status().epoch == 1


def test_a_loop_that_hangs_is_stopped_by_the_watchdog_and_what_it_sends_later_is_not_sent(pitstop):
    drive = begun(pitstop)
    drive.step()
    hung = JointCommand(drive.robot.positions[None] + 0.01, None, drive.robot.now())
    dog = drive.guard._watchdog
    looks, since = 0, drive.robot.now()
    while drive.guard.state is State.ENABLED:
        drive.robot.advance(pitstop.period_s / 4)
        dog.look()
        looks += 1
        assert looks < 100
    assert drive.robot.now() - since <= 2 * pitstop.period_s
    assert drive.robot.sent[-1].hold
    assert drive.guard.step(hung).send is None
    assert "watchdog" in drive.guard.step(hung).failure.message


def test_a_command_planned_before_the_robot_was_enabled_again_is_left_out(pitstop):
    drive = begun(pitstop)
    drive.step()
    command, planned = JointCommand(drive.robot.positions[None], None, drive.robot.now()), drive.guard.enablings
    assert drive.guard.step(command, planned).send is not None
    drive.guard.trip("operator", "stop was pressed")
    assert drive.guard.enable(live=True) is None
    assert drive.guard.step(command, planned).send is None
    assert drive.guard.step(command, planned + 1).send is not None


def _send_often(guard, command):
    for _ in range(20):
        guard.step(command)


def test_nothing_of_the_policy_follows_a_stop_however_many_threads_send(pitstop):
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet in the middle of things
    try:
        for _ in range(20):
            drive = begun(pitstop)
            command = JointCommand(drive.robot.positions[None], None, drive.robot.now())
            drive.guard.sense()
            senders = [threading.Thread(target=_send_often, args=(drive.guard, command)) for _ in range(4)]
            for sender in senders:
                sender.start()
            drive.guard.trip("operator", "stop was pressed")
            for sender in senders:
                sender.join()
            holds = [gated.hold for gated in drive.robot.sent]
            assert holds == sorted(holds)  # a hold is the last
            assert sum(holds) <= 1
    finally:
        sys.setswitchinterval(usual)


def test_the_watchdog_bites_once_from_its_own_thread():
    now, bitten = [0.0], threading.Semaphore(0)
    dog = Watchdog(1.0, 0.001, lambda: now[0], bitten.release)
    dog.start()
    try:
        dog.feed()
        now[0] = 0.9
        assert not bitten.acquire(timeout=0.05)
        now[0] = 1.1
        assert bitten.acquire(timeout=10)
        now[0] = 9.0
        assert not bitten.acquire(timeout=0.05)
        dog.feed()
        now[0] = 11.0
        assert bitten.acquire(timeout=10)
    finally:
        dog.stop()


def test_the_end_of_the_program_holds_the_robot(pitstop):
    drive = begun(pitstop)
    drive.guard.start()
    drive.step()
    drive.guard.stop()
    assert drive.robot.sent[-1].hold


def _calls(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_only_the_gate_makes_commands_that_a_robot_takes_and_only_the_guard_sends_them():
    makers = {file.name for file in FOLDER.rglob("*.py") if any("GatedCommand" in call for call in _calls(file))}
    senders = {file.name for file in FOLDER.rglob("*.py") if any("io.send" in call for call in _calls(file))}
    assert makers == {"safety.py"}
    assert senders == {"guard.py"}
