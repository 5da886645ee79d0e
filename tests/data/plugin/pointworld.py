"""A tiny world for the tests of data: a point on a line that must be moved to a mark, drawn by a few array writes."""

import json
import os
import time
from pathlib import Path

import gymnasium
import numpy as np

from moe_robot.types import Features

ENV_ID = "pointworld/Point-v0"
TASKS = ("go_left", "go_right", "stay")
GOALS = {"go_left": -0.8, "go_right": 0.8, "stay": 0.0}


class PointExpert:
    def __init__(self, env):
        self._env = env

    def act(self):
        error = GOALS[self._env.task] - self._env.position
        return np.array([np.clip(error, -0.2, 0.2), 1.0], dtype=np.float32)

    def perturb(self, action, scale, rng):
        return (action + np.array([0.2 * scale, 0.0]) * rng.normal(size=2)).astype(np.float32)


class PointEnv(gymnasium.Env):
    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    tasks = TASKS
    task_groups = {"demo": ("go_left", "go_right")}  # noqa: RUF012
    instruction_sets = ("seen", "heldout")
    state_names = ("position", "time")
    action_names = ("step", "grip")
    control_hz = 10
    task_description = ""
    renderer = "arrays"

    def __init__(self, size=16, hopeless=(), die_at=None, slow=0.0):
        box = gymnasium.spaces.Box
        pixels = {
            "front": box(0, 255, (size, size + 4, 3), np.uint8),
            "wrist": box(0, 255, (8, 8, 3), np.uint8),
        }
        self.observation_space = gymnasium.spaces.Dict(
            {"pixels": gymnasium.spaces.Dict(pixels), "agent_pos": box(-10, 10, (2,), np.float64)}
        )
        self.action_space = box(-1, 1, (2,), np.float32)
        self._size, self._hopeless, self._die_at, self._slow = size, hopeless, die_at, slow

    def options_for(self, tasks):
        return {"size": 12} if set(tasks) <= {"go_left", "go_right"} else {}

    def make_expert(self, task):
        assert task == self.task
        return PointExpert(self)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed == self._die_at:
            os._exit(9)
        self.task, self._layout = options["task"], seed
        self._named = options.get("named_task")
        self.position, self._time = float(self.np_random.uniform(-0.5, 0.5)), 0
        word = self.np_random.choice(["go", "move", "drive"])
        self.task_description = f"{word} {(self._named or self.task).removeprefix('go_')}"
        return self._observation(), {"task": self.task_description}

    def step(self, action):
        time.sleep(self._slow)
        self.position += float(action[0])
        self._time += 1
        near = abs(self.position - GOALS[self.task]) < 0.03 and self._time >= 3
        success = near and self._layout not in self._hopeless
        info = {"success": success, "task": self.task_description}
        if self._named:
            info["named_success"] = abs(self.position - GOALS[self._named]) < 0.03
        return self._observation(), 0.0, success, self._time >= 30, info

    def _observation(self):
        front = np.full((self._size, self._size + 4, 3), 30, np.uint8)
        column = int(np.clip((self.position + 1) / 2 * (self._size + 3), 0, self._size + 3))
        front[:, column] = (200, 40, 90)
        wrist = np.full((8, 8, 3), self._time, np.uint8)
        return {"pixels": {"front": front, "wrist": wrist}, "agent_pos": np.array([self.position, self._time / 10])}


class WandererPolicy:
    """A learner that has learned nothing: it always goes right by a tenth. It counts what it does since its reset."""

    def __init__(self, config):
        self.features = Features(
            {"front": (config["size"], config["size"] + 4), "wrist": (8, 8)}, PointEnv.state_names,
            PointEnv.action_names, PointEnv.control_hz,
        )  # fmt: skip
        self._since = 0

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        return cls(json.loads((Path(folder) / "config.json").read_text()))

    def reset(self):
        self._since = 0

    def select_action(self, observation):
        self._since += 1
        return np.array([0.1, self._since / 100], dtype=np.float32)


def register():
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point=PointEnv)
