"""``moe-robot sim-node``: PitStop on ROS 2 or behind the rosbridge protocol, as if it were a robot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import tyro

from moe_robot.deploy.address import is_loopback
from moe_robot.registry import make_environment, parse_options, select_tasks
from moe_robot.types import RobotWorld, UserError

if TYPE_CHECKING:
    from moe_robot.deploy.simulation.bridge import BridgeServer
    from moe_robot.deploy.simulation.node import SimNode
    from moe_robot.deploy.simulation.robot import SimulatedRobot
    from moe_robot.deploy.simulation.ros2_server import Ros2Server

HERE = "127.0.0.1:9090"


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot sim-node``."""

    contract: str = "pitstop"
    """A contract's YAML file, or a shipped one by its name."""
    env: str = "pitstop"
    """Short name or Gymnasium id of the world."""
    task: str = "pick_red_cube"
    """What is judged. What the robot does is up to who commands it."""
    seed: int = 100_000
    """Of the first episode's layout; each later one has the next."""
    episodes: int | None = None
    """How many to judge, then it ends. Left out: until Ctrl-C."""
    transport: Literal["auto", "rclpy", "rosbridge"] = "auto"
    """rclpy: native ROS 2. auto: that where this Python has rclpy and no address is given, else rosbridge."""
    address: str | None = None
    """HOST:PORT that the bridge listens on, 127.0.0.1:9090 when left out; port 0 takes a free one. Whoever reaches it
    can drive the simulated robot."""
    expose: bool = False
    """Allow an address that other machines can reach; over ROS 2, those that ROS_AUTOMATIC_DISCOVERY_RANGE lets in."""
    lockstep: bool = False
    """Wait for the command of each control step, for `moe-robot deploy --lockstep`, in place of living in real time."""
    pictures: Literal["png", "jpeg"] = "png"
    """How pictures are sent: png without loss, jpeg as most robots do."""
    env_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Options of the world as KEY=VALUE, for example objects=all."""


def host_and_port(address: str, expose: bool) -> tuple[str, int]:
    """``"127.0.0.1:9090"`` -> ``("127.0.0.1", 9090)``.

    Raises:
        UserError: it is no such address, or others can reach it and ``expose`` does not allow that.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise UserError(f"{address!r} is no address: expected HOST:PORT, for example 127.0.0.1:9090")
    if not expose and not is_loopback(host):
        raise UserError(
            f"others can reach {host}, and whoever does can drive the simulated robot: use 127.0.0.1, or allow it with "
            "--expose"
        )
    return host, port


def run(options: Options) -> int:
    """Live in real time; print one line for each episode and a last one for all."""
    from moe_robot.deploy.contract import load_contract
    from moe_robot.deploy.simulation.node import SimNode
    from moe_robot.deploy.simulation.robot import SimulatedRobot, world_options
    from moe_robot.deploy.transport import chosen

    if options.episodes is not None and options.episodes < 1:
        raise UserError(f"--episodes {options.episodes}: expected 1 or more")
    contract = load_contract(options.contract)
    native = chosen(options.transport, options.address, contract.ros) == "rclpy"
    host, port = host_and_port(options.address or HERE, options.expose)
    env = make_environment(options.env, **(world_options(contract) | parse_options(options.env_options)))
    try:
        if not isinstance(env.unwrapped, RobotWorld):
            raise UserError(
                f"{options.env} cannot stand in for a robot: expected one that takes joint commands, pitstop"
            )
        task, *others = select_tasks(env, options.task)
        if others:
            raise UserError(f"--task {options.task} are {1 + len(others)} tasks: expected one, for example {task}")
        robot = SimulatedRobot(env.unwrapped, contract, options.pictures)
        env.reset(seed=options.seed)
        env.unwrapped.pictures()  # what cannot be drawn is said before anybody connects
        server, where = _on_ros2(robot, options.expose) if native else _behind_a_bridge(robot, host, port)
        try:
            node = SimNode(env, robot, server, task, options.seed, partial(print, flush=True), options.lockstep)
            print(f"{contract.robot} lives {where} (Ctrl-C ends it)", flush=True)
            _judge(node, options.episodes)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the simulated robot is gone") from None
        finally:
            server.stop()
    finally:
        env.close()
    return 0


def _on_ros2(robot: SimulatedRobot, expose: bool) -> tuple[Ros2Server, str]:
    from moe_robot.deploy.simulation.ros2_server import Ros2Server
    from moe_robot.deploy.transport import stay_on_this_machine, whereabouts

    if not expose:
        stay_on_this_machine()
    server = Ros2Server(robot.sources, robot.sinks)
    server.start()
    return server, f"on {whereabouts()}"


def _behind_a_bridge(robot: SimulatedRobot, host: str, port: int) -> tuple[BridgeServer, str]:
    from moe_robot.deploy.simulation.bridge import BridgeServer

    server = BridgeServer(host, port, robot.sources, robot.sinks)
    return server, f"at ws://{host}:{server.start()}"


def _judge(node: SimNode, episodes: int | None) -> None:
    """Play so many episodes, or without end, with a line for each and the success rate in the end."""
    from moe_robot.evaluation.statistics import Rate

    seen: list[bool] = []
    of = f"/{episodes}" if episodes else ""
    try:
        while episodes is None or len(seen) < episodes:
            instruction, outcome = node.instruction, node.episode()
            seen.append(outcome.result == "success")
            which = f"episode {len(seen)}{of}: {outcome.task}, seed {outcome.seed}, {instruction!r}"
            print(f"{which}: {outcome}", flush=True)
    finally:
        if seen:
            print(f"success {sum(seen)}/{len(seen)} = {Rate.of(seen)}", flush=True)
