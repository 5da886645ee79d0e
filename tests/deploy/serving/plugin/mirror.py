"""A stranger's policy for the tests of serving: its plan tells which observation it was made of. Needs no torch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from moe_robot.types import Features, Observation, Routing

STATE_NAMES, ACTION_NAMES = ("x", "y", "gripper.pos"), ("x", "y", "light", "words")
SIZE = (8, 6)


def expected(state, picture, task: str, gain: float = 1.0, steps: int = 4) -> np.ndarray:
    """The plan (H, A): the state's first two numbers, the second growing by one a step, the light, the sentence."""
    rows = [[state[0], state[1] + h, np.mean(picture), len(task)] for h in range(steps)]
    return gain * np.array(rows, dtype=np.float32)


class MirrorPolicy:
    """What it does besides is in its config: ``gain``, ``chunk``, ``delay_s``, ``fps``; or the instruction says it."""

    def __init__(self, config: dict) -> None:
        self.config = SimpleNamespace(execute=3, text="words", sensor_dropout=0, only_instruction="", **config)
        self.features = Features({"front": SIZE}, STATE_NAMES, ACTION_NAMES, config["fps"])
        self.inference_count = 0

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        config = json.loads((Path(folder) / "config.json").read_text())
        config.pop("policy")
        return cls({"gain": 1.0, "chunk": 4, "delay_s": 0.0, "fps": 20} | config)

    def predict_action_chunk(self, batch) -> np.ndarray:
        time.sleep(self.config.delay_s)
        return np.stack([self._plan(*row) for row in zip(batch["observation.state"],
                         batch["observation.images.front"], batch["task"], strict=True)])  # fmt: skip

    def action_chunk(self, observation: Observation) -> np.ndarray:
        time.sleep(self.config.delay_s)
        return self._plan(observation.state, observation.images["front"], observation.task)

    def _plan(self, state, picture, task) -> np.ndarray:
        assert state.flags.writeable  # torch warns of what is not
        assert picture.flags.writeable
        if task == "die":
            os._exit(3)
        if task == "fail":
            raise ValueError("this robot\nasks too much")
        plan = expected(state, picture, task, self.config.gain, self.config.chunk)
        return plan * np.nan if task == "nothing" else plan

    def select_action(self, observation):
        return self.action_chunk(observation)[0]

    def reset(self) -> None:
        pass

    def disable_experts(self, roles) -> None:
        pass

    def after_update(self, optimiser=None):
        return ()

    def routing(self) -> Routing:
        return Routing(("vision",), ("vision.0", "arm.0"), ("vision", "arm"), np.array([[[3, 1]]]))
