"""The simulated world in this process as a robot: it tells, obeys, is judged, and each episode is a new epoch."""

import numpy as np
import pytest
from bridge_server import wait_until
from commands import STARTING_S, patient_contract

from moe_robot.deploy.backends.sim import SimRobot
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot
from moe_robot.deploy.robot_io import JointCommand


@pytest.fixture
def robot(tmp_path):
    ended = []
    one = SimRobot(load_contract(patient_contract(tmp_path)), "press_red", seed=3, judged=ended.append)
    one.ended = ended
    yield one
    one.stop()


def test_the_gate_enables_it_it_goes_where_it_is_told_and_a_new_episode_is_a_new_epoch(robot):
    guard = GuardedRobot(robot, robot._contract)
    assert robot.simulated
    assert not robot.status().connected
    robot.start()
    wait_until(lambda: guard.enable(live=True) is None, "enabling", STARTING_S)
    begun = guard.sense().newest.positions
    target = begun + 0.05

    def there():
        guard.beat()
        now = guard.sense()
        step = np.clip(target - now.newest.positions, -0.04, 0.04)
        guard.step(JointCommand((now.newest.positions + step)[None], 0.02, robot.now()))
        return np.abs(now.newest.positions - target).max() < 0.01

    wait_until(there, "the place", STARTING_S)
    epoch = robot.epoch
    wait_until(lambda: robot.ended, "the end of the episode", STARTING_S)
    assert (robot.ended[0].task, robot.ended[0].seed) == ("press_red", 3)
    wait_until(lambda: robot.epoch == epoch + 1, "the next", STARTING_S)
    assert guard.step(JointCommand(begun[None], None, robot.now())).passed is None
    assert guard.state is State.HELD


def test_when_the_world_cannot_be_made_the_reason_is_told(tmp_path):
    one = SimRobot(load_contract(patient_contract(tmp_path)), "press_red", environment="pitstob")
    one.start()
    wait_until(lambda: one.status().trouble, "the reason", STARTING_S)
    assert "did you mean" in one.status().trouble
    assert not one.status().connected
    one.stop()
