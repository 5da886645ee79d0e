"""How the hand of each task holds its object, for experts that shall mend what somebody else's hand did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_envs.metaworld.world import HAND, OBJECT


@dataclass(frozen=True)
class Grip:
    """How the hand of one task holds its object.

    Attributes:
        height: of the hand above the object, in metres, up to which closing fingers take hold of it.
        closed: opening of the fingers, 1 is wide open, from which on they hold it.
        effort: with which they close where Meta-World's is too little, else ``None``.
        ahead: metres in x from the object to the hand that holds it.
        centred: metres beside that place within which fingers may close; nothing is changed where an expert's own
            limit is strict enough.
        floor: height below which they would hold a wrong part of it.
        carried: the object counts as held where it is, also where the expert would go back to grasp it better.
    """

    height: float
    closed: float = 0.62
    effort: float | None = None
    ahead: float = 0.0
    centred: float = np.inf
    floor: float = -np.inf
    carried: bool = False

    def holds(self, seen: np.ndarray) -> bool:
        """Whether fingers that are closed this far have the object between them."""
        away = seen[HAND][:3] - seen[OBJECT]
        return bool(np.linalg.norm(away[:2]) < BETWEEN and away[2] < self.height and seen[HAND][3] < self.closed)


GRIPS = {
    "assembly-v3": Grip(0.062),
    "basketball-v3": Grip(0.057, 0.8, centred=0.012),
    "bin-picking-v3": Grip(0.053),
    "coffee-pull-v3": Grip(0.078, 0.65, ahead=0.005, centred=0.012, floor=0.025),
    "coffee-push-v3": Grip(0.077, 0.62, ahead=0.010, centred=0.012, floor=0.025),
    "disassemble-v3": Grip(0.062, ahead=-0.020, carried=True),
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
    "shelf-place-v3": Grip(0.076, ahead=-0.005, centred=0.012),
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
BETWEEN = 0.04
"""Metres beside an object within which closed fingers may have it between them."""
CLEAR = 0.04
"""Metres above ``Grip.height`` that leave room to open the fingers."""
RISE = 0.6
"""Upward action with which a hand goes there."""
GAIN = 25.0
"""Action for a metre of error, that of Meta-World's experts."""


def hold_on(grip: Grip, seen: np.ndarray, action: np.ndarray) -> None:
    """Change ``action`` so that the fingers close at the object only, and only then carry it; where not, try again."""
    away, opening = seen[HAND][:3] - seen[OBJECT], seen[HAND][3]
    aside = np.linalg.norm(away[:2]) > ASIDE or away[2] > ABOVE
    beside = away[:2] - (grip.ahead, 0.0)
    if aside or away[2] > grip.height:  # too far to hold anything
        if opening < WIDE or (action[3] > 0.0 and not aside):
            action[3] = -1.0
        above = away[2] - grip.height
        if not aside and opening < WIDE and action[2] < 0.0 and above < 2 * CLEAR:
            action[2] = RISE if above < CLEAR else 0.0
    elif away[2] < grip.floor:
        action[:] = 0.0, 0.0, RISE, -1.0
    elif action[3] > 0.0:
        if grip.effort is not None:
            action[3] = grip.effort
        if opening > WIDE and np.linalg.norm(beside) > grip.centred:
            action[:] = *(-GAIN * beside), 0.0, -1.0
        elif opening > grip.closed:
            action[:3] = 0.0, 0.0, min(action[2], 0.0)
