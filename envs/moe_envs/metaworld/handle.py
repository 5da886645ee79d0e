"""The expert of ``handle-pull-side``: Meta-World's own pulls a bar that slips through its fingers."""

from __future__ import annotations

import numpy as np

from moe_envs.metaworld.grips import GAIN
from moe_envs.metaworld.world import HAND, OBJECT

OUTSIDE, TOUCHING, INSIDE, BEHIND = 0.11, 0.084, 0.07, 0.05
"""Metres in x from the middle of the lever: clear of the bar at its end, at the bar, pressed against it, past it."""
OVER, FREE, SLIPPED, LOW = 0.12, 0.09, 0.06, 0.02
"""Metres above the lever: to go round it, where nothing is touched, where the bar has been lost, at its height."""
BESIDE, NEAR = 0.03, 0.10
"""Metres in y from the middle of the lever: the bar is still before the hand, and the hand is at the lever at all."""
PRESS, LIFT = 0.2, 0.35
"""Action towards the bar, and upward: fast enough for 31 control steps at 40 Hz, slow enough not to slip."""


class HandleLifter:
    """Lifts the bar at the end of the lever by pressing closed fingers against it from outside and going up.

    The lever has a damper (30 N s/m) and no weight. Between the fingers, as Meta-World's expert takes it, it rises a
    centimetre at best before they slip, and the expert, which then goes down again, may push it back as far. Pressed
    lightly from outside it follows the hand all the way. This is a function of what is seen alone, so that it can take
    over from anyone anywhere.
    """

    def get_action(self, seen: np.ndarray) -> np.ndarray:
        """The action, float64 (4,), not clipped; ``seen`` is Meta-World's whole observation, in metres."""
        x, y, z = away = seen[HAND][:3] - seen[OBJECT]
        if abs(y) > BESIDE or x < BEHIND:
            at_the_lever = z < FREE and x < TOUCHING + 0.01 and abs(y) < NEAR
            goal = (x, y, OVER) if at_the_lever else (OUTSIDE, 0.0, OVER)
        elif x > TOUCHING:
            goal = (OUTSIDE if z > LOW else INSIDE, 0.0, 0.0)
        elif z < SLIPPED:
            return np.array([-PRESS, -GAIN * y, LIFT, 1.0])
        else:
            goal = (OUTSIDE, 0.0, z)
        return np.append(GAIN * (np.array(goal) - away), 1.0)
