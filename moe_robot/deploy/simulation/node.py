"""The simulated robot in real time: it obeys, lives, tells; a referee judges each episode and begins the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moe_robot.deploy.simulation.lockstep import STEP, await_commands
from moe_robot.deploy.simulation.robot import SimulatedRobot
from moe_robot.deploy.simulation.server import Server

FARTHEST_BEHIND_S = 0.1
"""Of real time: what is missed beyond this is left out, so that the world does not hurry after it."""


@dataclass(frozen=True)
class Outcome:
    """How one episode ended.

    Attributes:
        task: its name.
        seed: that decided the layout.
        result: ``wrong`` when something else than the task was done.
        seconds: of the world, from the first command on.
        behind_s: seconds of real time that the world left out meanwhile, for the machine was too slow.
    """

    task: str
    seed: int
    result: Literal["success", "wrong", "time out"]
    seconds: float
    behind_s: float

    def __str__(self) -> str:
        late = f" ({self.behind_s:.1f} s of real time left out)" if self.behind_s else ""
        return f"{self.result} after {self.seconds:.1f} s{late}"


class SimNode:
    """Runs a world behind a bridge or ROS 2. Its connections break before each new episode: the robot began anew."""

    def __init__(
        self,
        env: Any,
        robot: SimulatedRobot,
        server: Server,
        task: str,
        seed: int,
        trouble: Callable[[str], None] = lambda line: None,
        lockstep: bool = False,
    ) -> None:
        """Begin the first episode.

        Args:
            env: the environment whose ``unwrapped`` the robot speaks for.
            robot: it.
            server: listens already.
            task: of all episodes.
            seed: of the first; each later one has the next.
            trouble: told of commands that could not be obeyed, and of resets.
            lockstep: the world stands still until it is told to move by one control step.
        """
        self._env, self._robot, self._server, self._trouble = env, robot, server, trouble
        self._lockstep = lockstep
        self._task, self._seed = task, seed
        self._limit_s: float = env.spec.max_episode_steps / env.unwrapped.control_hz
        self._behind_s, self._tries = 0.0, 0
        self._begin()

    @property
    def instruction(self) -> str:
        """What the environment would ask for in this episode."""
        return self._env.unwrapped.task_description

    def episode(
        self, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> Outcome:
        """Live until the episode is decided, and begin the next. After a reset it is another try of the same one.

        The robot's time runs always, the episode's from its first command on.
        """
        while True:
            outcome = self._in_lockstep(sleep) if self._lockstep else self._in_real_time(now, sleep)
            self._seed += outcome is not None
            self._begin()
            if outcome:
                return outcome
            self._trouble(f"reset: the episode of seed {self._seed} begins anew")

    def _in_lockstep(self, sleep: Callable[[float], None]) -> Outcome | None:
        world, steps = self._env.unwrapped, 0
        per_step = round(1 / world.control_hz / world.update_s)
        while True:
            mark = f"seed {self._seed} try {self._tries}{STEP}{steps}"
            commands = await_commands(self._robot, self._server, mark, self._server.wants_reset, sleep)
            if commands is None:
                return None
            if self._obey(commands):
                for _ in range(per_step):
                    self._robot.advance()
                steps += 1
                if outcome := self._judge(steps / world.control_hz):
                    return outcome

    def _in_real_time(self, now: Callable[[], float], sleep: Callable[[float], None]) -> Outcome | None:
        world, due = self._env.unwrapped, now()
        per_step = round(1 / world.control_hz / world.update_s)
        begun, updates = False, 0
        while not self._server.wants_reset():
            if (early := due - now()) > 0:
                sleep(early)
            begun = self._obey(self._server.take()) or begun
            self._robot.advance()
            for topic, message in self._robot.messages(time.time(), self._server.wanted).items():
                self._server.tell(topic, message)
            updates += begun
            if begun and updates % per_step == 0 and (outcome := self._judge(updates * world.update_s)):
                return outcome
            due = self._next(due + world.update_s, now())
        return None

    def _begin(self) -> None:
        self._env.reset(seed=self._seed, options={"task": self._task})
        self._server.restart()
        self._behind_s = 0.0
        self._tries += 1

    def _obey(self, commands: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether one of them could be obeyed."""
        complaints = [self._robot.obey(topic, message) for topic, message in commands.items()]
        for complaint in filter(None, complaints):
            self._trouble(complaint)
        return None in complaints

    def _judge(self, seconds: float) -> Outcome | None:
        told = self._env.unwrapped.outcome()
        result = "success" if told["success"] else "wrong" if told["wrong"] else None
        if result is None and seconds >= self._limit_s:
            result = "time out"
        return Outcome(self._task, self._seed, result, seconds, self._behind_s) if result else None

    def _next(self, due: float, now: float) -> float:
        if (missed := now - due) <= FARTHEST_BEHIND_S:
            return due
        self._behind_s += missed
        return now
