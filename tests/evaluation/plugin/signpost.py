"""A stranger's plug-in for the tests of evaluation: a world with three doors and a sentence, and a policy that reads.

A walker starts on a line; a task is the door it must reach. Both halves are found through entry points, as in use.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np

from moe_robot.registry import unknown
from moe_robot.types import Features, Observation, Routing, UserError

DOORS = {"go_left": -1.0, "go_right": 1.0, "go_up": 2.0}
SIZE = 24


def register() -> None:
    for name in ("SignpostEnv", "SilentEnv"):
        env_id = f"signpost/{name.removesuffix('Env')}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=f"signpost:{name}", max_episode_steps=30)


class SignpostEnv(gymnasium.Env):
    """``agent_pos`` is the position on the line, the action a step along it. ``crash_*`` break it on purpose."""

    metadata: ClassVar = {"render_modes": [], "render_fps": 10}
    tasks = tuple(DOORS)
    task_groups: ClassVar = {"flat": ("go_left", "go_right")}
    instruction_sets = ("seen", "heldout")
    state_names = ("x",)
    action_names = ("dx",)
    control_hz = 10
    renderer = "numpy rectangles"

    def __init__(self, size: int = SIZE, crash_seed: int = -1, crash_once: str = "", slow_s: float = 0.0) -> None:
        self.size, self.crash_seed, self.crash_once, self.slow_s = size, crash_seed, crash_once, slow_s
        box = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            pixels=gymnasium.spaces.Dict(front=box, wrist=box),
            agent_pos=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32),
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        options = options or {}
        self.task = options.get("task", "go_left")
        self.named = options.get("named_task")
        if seed == self.crash_seed:
            marker = Path(self.crash_once) if self.crash_once else None
            if marker is None or not marker.exists():
                if marker:
                    marker.touch()
                os._exit(9)
        word = (self.named or self.task).removeprefix("go_")
        self.sentence = f"please go {word}" if options.get("instructions") != "heldout" else f"would you head {word}?"
        self.x = float(self.np_random.uniform(-0.3, 0.3))
        return self._observe(), {"task": self.sentence}

    def step(self, action):
        time.sleep(self.slow_s)
        self.x += float(np.clip(action[0], -0.2, 0.2))
        reached = next((name for name, x in DOORS.items() if abs(self.x - x) < 0.1), None)
        if reached == "go_right" and "go_up" in {self.task, self.named}:
            reached = None  # the way up leads past the right door
        success = reached == self.task
        info = {"task": self.sentence, "success": success, "wrong": reached is not None and not success}
        if self.named:
            info["named_success"] = reached == self.named
        return self._observe(), float(success), reached is not None, False, info

    def _observe(self):
        front = np.full((self.size, self.size, 3), 235, np.uint8)
        column = int(np.clip((self.x + 1.2) / 3.4, 0, 0.95) * self.size)
        front[self.size // 3 :, max(0, column - 2) : column + 2] = (40, 90, 160)
        return {"pixels": {"front": front, "wrist": front[::-1].copy()}, "agent_pos": np.array([self.x], np.float32)}


class SilentEnv(SignpostEnv):
    """An environment that never says whether the task was done."""

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {}


class SignpostPolicy:
    """Walks to the door that the sentence names, in chunks of three noisy steps; without language it walks left.

    The config's ``gate`` says whether it has one, ``blunder`` how likely a chunk goes the wrong way.
    """

    def __init__(self, config: dict) -> None:
        self.config = config
        self.features = Features({"front": (SIZE, SIZE), "wrist": (SIZE, SIZE)}, ("x",), ("dx",), 10)
        self.inference_count = 0
        self.off: tuple[str, ...] = ()
        self.queue: list[np.ndarray] = []
        self._routing: Routing | None = None

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        return ("signpost",)

    @classmethod
    def from_pretrained(cls, folder: Path, device: str = "cpu") -> SignpostPolicy:
        return cls(json.loads((Path(folder) / "config.json").read_text()))

    def reset(self) -> None:
        self.queue = []

    def select_action(self, observation: Observation) -> np.ndarray:
        import torch  # here, because processes with the environment alone should not need it

        if not self.queue:
            self.inference_count += 1
            assert observation.task is not None
            assert observation.state is not None
            word = observation.task.strip("?").split()[-1]
            goal = DOORS["go_left" if "language" in self.off else f"go_{word}"]
            way = np.sign(goal - observation.state[0]) * (-1 if torch.rand(()) < self.config.get("blunder", 0) else 1)
            noise = 0.02 * torch.randn(3).numpy()
            self.queue = [np.array([0.15 * way + n], np.float32) for n in noise]
            self._routing = self._route(len(word))
        return self.queue.pop(0) * self.config.get("scale", 1.0)

    def _route(self, n: int) -> Routing:
        counts = np.zeros((2, 2, 3), np.int64)
        counts[:, 0] = [[6, 2, 0], [5, 0, 3]]
        counts[:, 1, 2] = n
        counts[:, 1, 0] = 1
        return Routing(
            ("vision", "language"), ("vision.0", "vision.1", "language.0"), ("vision", "vision", "language"), counts
        )

    def routing(self) -> Routing | None:
        return self._routing if self.config.get("gate", True) else None

    def disable_experts(self, roles) -> None:
        if roles and not self.config.get("gate", True):
            raise UserError("no gate")
        self.off = tuple(roles)

    def after_update(self) -> None:
        pass


class SensingSignpostPolicy(SignpostPolicy):
    """One whose sensors can be switched off: without language or without its position it walks left."""

    sensors = ("front", "wrist", "arm", "language")
    blind: frozenset[str] = frozenset()

    def disable_sensors(self, names) -> None:
        for name in names:
            if name not in self.sensors:
                raise unknown("sensor", name, self.sensors)
        if set(names) == set(self.sensors):
            raise UserError("nothing is left to sense with")
        self.blind = frozenset(names) & {"arm", "language"}

    def select_action(self, observation: Observation) -> np.ndarray:
        if self.blind:
            return np.array([-0.15], np.float32)
        return super().select_action(observation)
