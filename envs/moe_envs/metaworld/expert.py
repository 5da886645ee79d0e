"""Meta-World's scripted experts behind the protocol of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from moe_envs.metaworld.grips import GRIPS, hold_on
from moe_envs.metaworld.handle import HandleLifter
from moe_envs.metaworld.lever import LeverPusher
from moe_envs.metaworld.world import GOAL, HAND, OBJECT, SECOND_OBJECT, World, require

TOLD = {
    "box-close-v3": (0.0, 0.0, -0.009),
    "coffee-pull-v3": (0.010, 0.0, 0.0),
    "peg-insert-side-v3": (0.0, 0.0, 0.012),
    "pick-out-of-hole-v3": (0.0, 0.0, 0.012),
}
"""Metres by which an expert is told its object elsewhere than it lies.

Meta-World's peg expert lifts once the hand is within 25 mm of the peg's height, which is just where the fingers come to
rest on the table. At 40 Hz and with disturbances it presses for about 30 steps before it lifts, nothing observed
changes meanwhile, and who learned from it presses for ever. Told 12 mm more, it lifts at once. Two others stand on such
an edge too, where they press or change their mind from step to step. The one of ``coffee-pull`` takes the mug a
centimetre before its middle, from where it slips away. Figures in docs/results/metaworld-log.md.
"""

STAND_INS = {"soccer-v3": "push-v3"}
"""Tasks that are played by another one's expert.

Meta-World's own kicks the ball and runs after it: a kick that is a little off sends it where the hand cannot follow.
The one of ``push`` takes the ball between its fingers and brings it.
"""

OURS = {"handle-pull-side-v3": HandleLifter, "lever-pull-v3": LeverPusher}
"""Tasks with an expert of our own."""

LEVEL = ("stick-pull-v3",)
"""Tasks whose goal is told at the height at which the second object stands.

Meta-World's expert pulls the flask towards a goal on the table, and draws the stick down and out of its handle.
"""


class MetaWorldExpert:
    """Meta-World's scripted policy of one task; it reads the privileged state of the environment it was made from.

    Args:
        task: Meta-World's name.
        world: gives the world that is being played.
    """

    def __init__(self, task: str, world: Callable[[], World]) -> None:
        own = OURS.get(task) or require().policies.ENV_POLICY_MAP[STAND_INS.get(task, task)]
        self._policy = own()
        self._task, self._world = task, world

    def act(self) -> np.ndarray:
        """The clean action, float32 (4,), clipped to [-1, 1]: as it comes it is up to 25 times what has an effect."""
        world = self._world()
        if world.task != self._task:
            raise ValueError(f"the expert of {self._task} was asked about {world.task}")
        with warnings.catch_warnings(action="ignore"):  # that it will be clipped, which happens here
            action = self._policy.get_action(self._told(world.seen))
        if self._task in GRIPS:
            hold_on(GRIPS[self._task], world.seen, action)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _told(self, seen: np.ndarray) -> np.ndarray:
        """What the policy is given in place of ``seen``, the whole observation."""
        told, grip = seen.copy(), GRIPS.get(self._task)
        told[OBJECT] += TOLD.get(self._task, 0.0)
        if self._task in LEVEL:
            told[GOAL.stop - 1] = seen[SECOND_OBJECT.stop - 1]
        if grip is not None and grip.carried and grip.holds(seen):
            told[OBJECT][:2] = seen[HAND][:2] - (grip.ahead, 0.0)
        return told

    def perturb(self, action: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
        """``action`` with Gaussian noise of ``scale`` on the motion (1 is 1 cm a step); the gripper stays as it is."""
        disturbed = action.copy()
        disturbed[:3] += rng.normal(0.0, scale, 3).astype(np.float32) if scale else 0.0
        return np.clip(disturbed, -1.0, 1.0)
