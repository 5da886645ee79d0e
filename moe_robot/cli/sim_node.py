"""``moe-robot sim-node``: PitStop behind the rosbridge protocol, as if it were a robot and its bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import tyro

from moe_robot.deploy.address import is_loopback
from moe_robot.registry import make_environment, parse_options, select_tasks
from moe_robot.types import RobotWorld, UserError

if TYPE_CHECKING:
    from moe_robot.deploy.simulation.node import SimNode


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
    address: str = "127.0.0.1:9090"
    """HOST:PORT to listen on; port 0 takes a free one. Whoever reaches it can drive the simulated robot."""
    expose: bool = False
    """Allow an address that other machines can reach."""
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
    from moe_robot.deploy.simulation.bridge import BridgeServer
    from moe_robot.deploy.simulation.node import SimNode
    from moe_robot.deploy.simulation.robot import SimulatedRobot, world_options

    if options.episodes is not None and options.episodes < 1:
        raise UserError(f"--episodes {options.episodes}: expected 1 or more")
    host, port = host_and_port(options.address, options.expose)
    contract = load_contract(options.contract)
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
        server = BridgeServer(host, port, robot.sources, robot.sinks)
        port = server.start()
        try:
            node = SimNode(env, robot, server, task, options.seed, lambda line: print(line, flush=True))
            print(f"{contract.robot} lives at ws://{host}:{port} (Ctrl-C ends it)", flush=True)
            _judge(node, options.episodes)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the simulated robot is gone") from None
        finally:
            server.stop()
    finally:
        env.close()
    return 0


def _judge(node: SimNode, episodes: int | None) -> None:
    """Play so many episodes, or without end, with a line for each and the success rate in the end."""
    from moe_robot.evaluation.statistics import Rate

    seen: list[bool] = []
    of = f"/{episodes}" if episodes else ""
    try:
        while episodes is None or len(seen) < episodes:
            instruction, outcome = node.instruction, node.episode()
            seen.append(outcome.result == "success")
            late = f" ({outcome.behind_s:.1f} s of real time left out)" if outcome.behind_s else ""
            print(
                f"episode {len(seen)}{of}: {outcome.task}, seed {outcome.seed}, {instruction!r}: {outcome.result} "
                f"after {outcome.seconds:.1f} s{late}",
                flush=True,
            )
    finally:
        if seen:
            print(f"success {sum(seen)}/{len(seen)} = {Rate.of(seen)}", flush=True)
