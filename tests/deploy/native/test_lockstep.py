"""A policy that sees and moves PitStop over ROS 2 does what it does in process, step by step."""

import time

import numpy as np
import pytest
from bridge_server import wait_until
from commands import INSTRUCTION

from moe_robot.deploy import motion
from moe_robot.deploy.backends.ros2 import Ros2Robot
from moe_robot.deploy.checkpoint import load_act
from moe_robot.deploy.observation import observe
from moe_robot.deploy.robot_io import GatedCommand
from moe_robot.deploy.simulation.robot import SimulatedRobot, world_options
from moe_robot.deploy.simulation.ros2_server import Ros2Server
from moe_robot.deploy.sync import match
from moe_robot.registry import make_environment
from moe_robot.types import Observation

STEPS, SEED = 60, 100_000

pytestmark = pytest.mark.full


@pytest.fixture
def world(patient):
    def make():
        made.append(make_environment("pitstop", **world_options(patient)))
        return made[-1]

    made = []
    yield make
    for env in made:
        env.close()


def asked(env, act, observation):
    """The action (A,) of the policy for what the environment itself gives it."""
    return np.asarray(act(Observation(observation["pixels"], observation["agent_pos"], INSTRUCTION)))[0]


def alone(env, act):
    """Joint positions (STEPS, 7) of an evaluation."""
    observation, _ = env.reset(seed=SEED, options={"task": "pick_red_cube"})
    places = []
    for _ in range(STEPS):
        observation, _, _, _, _ = env.step(asked(env, act, observation))
        places.append(env.unwrapped.joint_positions())
    return np.array(places)


def over_ros(env, act, contract, start):
    """The same with ROS between policy and world: actions (STEPS, A), those of the same moments without ROS, places."""
    env.reset(seed=SEED, options={"task": "pick_red_cube"})
    robot = SimulatedRobot(env.unwrapped, contract)
    server = start(Ros2Server(robot.sources, robot.sinks))
    io = start(Ros2Robot(contract))
    wait_until(lambda: io.latest() and io.status().connected and all(map(server.wanted, robot.sources)), "both ends")
    robot._ticks = per_step = round(1 / contract.control_hz / env.unwrapped.update_s)  # when everything is due
    seen, expected, places = [], [], []
    for _ in range(STEPS):
        sensed = told(server, robot, io)
        observation, observed = observe(sensed, contract, INSTRUCTION)
        seen.append(np.asarray(act(observation))[0])
        expected.append(asked(env, act, env.unwrapped._observe()))
        command = motion.command(seen[-1], sensed.newest, contract, observed)
        assert io.send(GatedCommand(command, io.now(), io.epoch))
        heard = {}
        wait_until(lambda: heard.update(server.take()) or len(heard) == 2, "the command")  # noqa: B023
        for topic, content in heard.items():
            assert robot.obey(topic, content) is None
        for _ in range(per_step):
            robot.advance()
        places.append(env.unwrapped.joint_positions())
    return np.array(seen), np.array(expected), np.array(places)


def told(server, robot, io):
    """What the policy's side has sensed of this moment, told until all of it is there."""
    begun = io.now()

    def came():
        for topic, content in robot.messages(time.time(), server.wanted).items():
            server.tell(topic, content)
        sensed = match(io.latest())
        times = [image.sensed for image in sensed.images.values()] + [sensed.newest.sensed if sensed.newest else 0.0]
        return len(times) == 3 and min(times) >= begun

    wait_until(came, "all messages of this step")
    return match(io.latest())


def test_in_lockstep_its_actions_are_those_of_the_evaluation(world, patient, checkpoint, start):
    act = load_act(checkpoint, patient, INSTRUCTION)
    seen, expected, places = over_ros(world(), act, patient, start)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    # The worlds drift apart by what one flipped bit of a pixel does to the next action, and no more.
    np.testing.assert_allclose(places, alone(world(), act), atol=1e-3)
