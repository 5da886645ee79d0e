"""Meta-World's scripted experts behind the protocol of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe_envs.metaworld.world import HAND, OBJECT, World, require

TOLD_HIGHER = {"peg-insert-side-v3": 0.012, "box-close-v3": -0.009, "pick-out-of-hole-v3": 0.012}
"""Metres by which an expert is told its object higher than it lies.

Meta-World's peg expert lifts once the hand is within 25 mm of the peg's height, which is just where the fingers come to
rest on the table. At 40 Hz and with disturbances it presses for about 30 steps before it lifts, nothing observed
changes meanwhile, and who learned from it presses for ever. Told 12 mm more, it lifts at once. The others stand on such
an edge too, where they press or change their mind from step to step; figures in docs/results/metaworld-log.md.
"""

STAND_INS = {"soccer-v3": "push-v3"}
"""Tasks that are played by another one's expert.

Meta-World's own kicks the ball and runs after it: a kick that is a little off sends it where the hand cannot follow.
The one of ``push`` takes the ball between its fingers and brings it.
"""


@dataclass(frozen=True)
class Grip:
    """How the hand of one task holds its object.

    Attributes:
        height: of the hand above the object, in metres, up to which closing fingers take hold of it.
        closed: opening of the fingers, 1 is wide open, from which on they hold it.
        effort: with which they close where Meta-World's is too little, else ``None``.
    """

    height: float
    closed: float = 0.62
    effort: float | None = None


GRIPS = {
    "assembly-v3": Grip(0.062),
    "basketball-v3": Grip(0.057, 0.8),
    "bin-picking-v3": Grip(0.053),
    "coffee-pull-v3": Grip(0.078, 0.65),
    "coffee-push-v3": Grip(0.077, 0.7),
    "disassemble-v3": Grip(0.049),
    "hammer-v3": Grip(0.057),
    "hand-insert-v3": Grip(0.063),
    "peg-insert-side-v3": Grip(0.048),
    "peg-unplug-side-v3": Grip(0.070, 0.97, effort=0.6),
    "pick-out-of-hole-v3": Grip(0.062, effort=0.6),
    "pick-place-v3": Grip(0.054),
    "pick-place-wall-v3": Grip(0.060),
    "push-back-v3": Grip(0.057, 0.7),
    "push-v3": Grip(0.049),
    "push-wall-v3": Grip(0.046),
    "shelf-place-v3": Grip(0.076),
    "soccer-v3": Grip(0.060, 0.75),
    "stick-pull-v3": Grip(0.056),
    "stick-push-v3": Grip(0.059),
    "sweep-into-v3": Grip(0.052, 0.78),
    "sweep-v3": Grip(0.066),
}
"""The tasks whose expert is kept from closing its fingers too early, and made to try again.

Meta-World's experts begin to close 6 to 18 cm above their object and count on reaching it before the fingers meet. Once
something has slowed the hand the fingers close on nothing, and from then on the expert presses closed fingers onto the
object for ever: who corrects a policy with them teaches it just that. Heights and openings are what was measured while
such experts carried their objects, plus 12 mm; figures in docs/results/metaworld-log.md.
"""
WIDE = 0.85
"""Opening from which on fingers can go down around an object."""
ASIDE, ABOVE = 0.06, 0.25
"""Metres around and above an object within which a hand is on its way to it, or from it."""
CLEAR = 0.04
"""Metres above ``Grip.height`` that leave room to open the fingers."""
RISE = 0.6
"""Upward action with which a hand goes there."""


class MetaWorldExpert:
    """Meta-World's scripted policy of one task; it reads the privileged state of the environment it was made from.

    Args:
        task: Meta-World's name.
        world: gives the world that is being played.
    """

    def __init__(self, task: str, world: Callable[[], World]) -> None:
        self._policy = require().policies.ENV_POLICY_MAP[STAND_INS.get(task, task)]()
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
        if self._task in GRIPS:
            _hold_on(GRIPS[self._task], world.seen, action)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def perturb(self, action: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
        """``action`` with Gaussian noise of ``scale`` on the motion (1 is 1 cm a step); the gripper stays as it is."""
        disturbed = action.copy()
        disturbed[:3] += rng.normal(0.0, scale, 3).astype(np.float32) if scale else 0.0
        return np.clip(disturbed, -1.0, 1.0)


def _hold_on(grip: Grip, seen: np.ndarray, action: np.ndarray) -> None:
    """Change ``action`` so that the fingers close at the object only, and only then carry it; where not, try again."""
    away, opening = seen[HAND][:3] - seen[OBJECT], seen[HAND][3]
    aside = np.linalg.norm(away[:2]) > ASIDE or away[2] > ABOVE
    if aside or away[2] > grip.height:  # too far to hold anything
        if opening < WIDE or (action[3] > 0.0 and not aside):
            action[3] = -1.0
        above = away[2] - grip.height
        if not aside and opening < WIDE and action[2] < 0.0 and above < 2 * CLEAR:
            action[2] = RISE if above < CLEAR else 0.0
    elif action[3] > 0.0:
        action[3] = action[3] if grip.effort is None else grip.effort
        if opening > grip.closed:
            action[:3] = 0.0, 0.0, min(action[2], 0.0)
