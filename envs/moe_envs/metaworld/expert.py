"""Meta-World's scripted experts behind the protocol of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from moe_envs.metaworld.world import HAND, OBJECT, World, require

TOLD_HIGHER = {
    "peg-insert-side-v3": 0.012,
    "box-close-v3": -0.009,
    "pick-out-of-hole-v3": 0.012,
    "push-back-v3": -0.009,
    "sweep-into-v3": -0.009,
}
"""Metres by which an expert is told its object higher than it lies.

Meta-World's peg expert lifts once the hand is within 25 mm of the peg's height, which is just where the fingers come to
rest on the table. At 40 Hz and with disturbances it presses for about 30 steps before it lifts, nothing observed
changes meanwhile, and who learned from it presses for ever. Told 12 mm more, it lifts at once. The others stand on such
an edge too, where they press or change their mind from step to step; figures in docs/results/metaworld-log.md.
"""

LIFTS_BELOW = {"bin-picking-v3": 0.55, "disassemble-v3": 0.6}
"""Opening of the fingers, 1 is wide open, down to which an expert stands still before it lifts.

These two begin to lift while the fingers are still open, leave the height at which they do so, come down again, and so
on until the fingers happen to be closed. Waiting for the fingers, which a policy sees as well, they lift once.
"""
LIFT = 0.3
"""An upward action above this is meant to lift."""


class MetaWorldExpert:
    """Meta-World's scripted policy of one task; it reads the privileged state of the environment it was made from.

    Args:
        task: Meta-World's name.
        world: gives the world that is being played.
    """

    def __init__(self, task: str, world: Callable[[], World]) -> None:
        self._policy = require().policies.ENV_POLICY_MAP[task]()
        self._task, self._world = task, world

    def act(self) -> np.ndarray:
        """The clean action, float32 (4,), clipped to [-1, 1]: as it comes it is up to 25 times what has an effect."""
        world = self._world()
        told = world.seen.copy()
        told[OBJECT.stop - 1] += TOLD_HIGHER.get(self._task, 0.0)
        if world.task != self._task:
            raise ValueError(f"the expert of {self._task} was asked about {world.task}")
        with warnings.catch_warnings(action="ignore"):  # that it will be clipped, which happens here
            action = self._policy.get_action(told)
        if action[3] > 0.0 and action[2] > LIFT and world.seen[HAND][3] > LIFTS_BELOW.get(self._task, 1.0):
            action[:3] = 0.0
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def perturb(self, action: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
        """``action`` with Gaussian noise of ``scale`` on the motion (1 is 1 cm a step); the gripper stays as it is."""
        disturbed = action.copy()
        disturbed[:3] += rng.normal(0.0, scale, 3).astype(np.float32) if scale else 0.0
        return np.clip(disturbed, -1.0, 1.0)
