"""The expert of ``lever-pull``: Meta-World's own changes between up and down from step to step."""

from __future__ import annotations

import numpy as np

from moe_envs.metaworld.grips import GAIN
from moe_envs.metaworld.world import GOAL, HAND, OBJECT

LENGTH = 0.2
"""Metres from the pivot to the tip of the lever; the goal is the tip's place once the lever is upright."""
UNDER, BEFORE = np.array([0.0, -0.065, -0.10]), np.array([0.0, -0.05, 0.02])
"""Metres from the tip to the hand that raises a lever which lies, and to the one that pushes it upright."""
AHEAD = 0.06
"""Metres along the tip's circle to the point at which the hand aims."""
REACH = np.array([[-0.03, 0.03], [-0.035, 0.06], [-0.06, 0.05]])
"""Metres from that place, in x, y and z, within which a hand has the lever before it."""
HIGH, FRONT = 0.03, 0.08
"""Metres above the place at the lever from which a hand is over it, and before the tip where it may go down."""
START = np.array([0.0, -0.015, -0.03])
"""Metres from the place at the lever to where a hand goes that is not there yet."""


class LeverPusher:
    """Turns the lever upright by following its tip along the circle: from below, then from the front.

    Meta-World's expert goes up within 2 cm of a line before the tip, else to 10 cm below it, and a hand that pushes
    along a circle leaves that line again and again. A function of what is seen alone, so that it can take over from
    anyone.
    """

    def get_action(self, seen: np.ndarray) -> np.ndarray:
        """The action, float64 (4,), not clipped; ``seen`` is Meta-World's whole observation, in metres."""
        tip, goal = seen[OBJECT], seen[GOAL]
        away = seen[HAND][:3] - tip
        sine = np.clip(1.0 + (tip[2] - goal[2]) / LENGTH, -1.0, 1.0)  # of the angle from lying to upright
        cosine = np.sqrt(1.0 - sine**2) * (1.0 if tip[1] <= goal[1] else -1.0)
        place = UNDER + (BEFORE - UNDER) * max(sine, 0.0)
        off = away - place
        if np.all((REACH[:, 0] < off) & (off < REACH[:, 1])):
            target = place + AHEAD * np.array([0.0, sine, cosine])
        elif off[2] > HIGH and away[1] > -FRONT:  # over the lever, or beside it: out to the front
            target = np.array([away[0], -FRONT - 0.03, away[2]])
        else:
            target = place + START
        return np.append(GAIN * (target - away), 1.0)
