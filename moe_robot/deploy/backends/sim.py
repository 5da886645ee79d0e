"""A robot that is a simulated world in this process, in real time: no ROS, no network, nothing else to start.

It speaks the same messages through the same inbox as the others, and is judged by the same referee as ``sim-node``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moe_robot.deploy import command_messages
from moe_robot.deploy.backends.listener import Listener
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.robot_io import GatedCommand
from moe_robot.deploy.simulation.node import Outcome, SimNode
from moe_robot.deploy.simulation.robot import SimulatedRobot, world_options
from moe_robot.deploy.simulation.server import WAITING, Heard
from moe_robot.registry import make_environment
from moe_robot.types import RobotWorld, UserError


class SimRobot(Listener):
    """``RobotIO`` of a world that lives in a thread of its own. Each new episode is a new epoch.

    It shares this process's interpreter with the control loop: good for trying things out, not for judging jitter.
    """

    def __init__(
        self,
        contract: Contract,
        task: str = "pick_red_cube",
        seed: int = 100_000,
        environment: str = "pitstop",
        judged: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """Nothing lives yet.

        Args:
            contract: of the robot.
            task: what is judged.
            seed: of the first episode's layout; each later one has the next.
            environment: a short name or Gymnasium id.
            judged: told how each episode ended, from the world's thread.
        """
        super().__init__(contract)
        self._task, self._seed, self._environment, self._judged = task, seed, environment, judged
        self._options = world_options(contract)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._heard = Heard(maxlen=WAITING)
        self._thread = threading.Thread(target=self._live, name="simulated world", daemon=True)
        self._simulated = True

    def start(self) -> None:
        """The world begins, in its own thread: what draws its pictures belongs to one."""
        self._thread.start()

    def stop(self) -> None:
        """End the world; what it was told last does not matter any more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._connected = False

    def send(self, command: GatedCommand) -> bool:
        """Have the world obey in its next update."""
        with self._lock:
            if not self._is_for(command):
                return False
            self._heard.extend(command_messages.messages(command.command, self._contract, time.time()).items())
        return True

    def wanted(self, topic: str) -> bool:
        """Everything is."""
        return True

    def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """The world told something."""
        self._inbox.take(topic, message, self.now(), time.time())

    def take(self) -> Mapping[str, Mapping[str, Any]]:
        """Topic -> the newest command since this was asked last."""
        return dict(self.take_each())

    def take_each(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """All commands since this was asked last, in order; ends the world's thread when it is over."""
        if self._over.is_set():
            raise _OverError
        with self._lock:
            heard = tuple(self._heard)
            self._heard.clear()
        return heard

    def restart(self) -> None:
        """A new episode: what was sent is forgotten, and the robot must be enabled again."""
        with self._lock:
            self._heard.clear()
            self._inbox.begin_epoch()
            self._connected = True

    def wants_reset(self) -> bool:
        """Never: there is nobody to call a service."""
        return False

    def _live(self) -> None:
        try:
            env = make_environment(self._environment, **self._options)
            try:
                if not isinstance(env.unwrapped, RobotWorld):
                    raise UserError(f"{self._environment} cannot stand in for a robot: expected pitstop")
                robot = SimulatedRobot(env.unwrapped, self._contract)
                node = SimNode(env, robot, self, self._task, self._seed, self._complain)
                while True:
                    self._judged(node.episode())
            finally:
                env.close()
        except _OverError:
            pass
        except Exception as error:  # whatever ends the world, the robot is gone, and freshness holds what is left
            self._complain(" ".join(f"the simulated world ended: {error}".split()))
        finally:
            with self._lock:
                self._connected = False

    def _complain(self, line: str) -> None:
        self._inbox.count("complaints of the world", line)


class _OverError(Exception):
    """The world is to end."""
