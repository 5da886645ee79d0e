"""When the next control step is due: at a fixed rate, in a phase in which the policy's answers are young.

The robot's pictures come at their own times. A loop that takes no notice of them begins its steps anywhere between two
answers, so an answer waits up to a whole period before it is obeyed. Here each step is begun a little earlier or later
than a period after the one before, until steps come soon after answers: the loop is locked to the pictures in phase,
as a phase-locked loop is to its signal.
"""

from __future__ import annotations

import math

SPARE = 0.1
"""Of a period, between the moment at which an answer usually comes and the step that obeys it."""
GAIN, FARTHEST = 0.3, 0.05
"""How much of the error one step makes good, and at most what part of a period."""


class Pace:
    """Tells when steps are due. For one thread."""

    def __init__(self, period_s: float, first: float) -> None:
        """Steps of ``period_s`` seconds, the first one due at ``first``."""
        self.due = first
        self._period = period_s
        self._came: float | None = None  # an answer, since the step before

    def answered(self, observed: float, now: float) -> None:
        """An answer came ``now``. One that took longer than a period says nothing about the next: it is ignored."""
        if now - observed < self._period:
            self._came = now

    def next(self, now: float) -> float:
        """When the step after the one that was due is due. Steps that were missed are left out, never hurried after."""
        self.due += self._period + self._drift()
        self.due += self._period * max(math.floor((now - self.due) / self._period), 0)
        return self.due

    def _drift(self) -> float:
        if self._came is None:
            return 0.0
        waited, half, self._came = self.due - self._came, self._period / 2, None
        error = (waited - SPARE * self._period + half) % self._period - half
        limit = FARTHEST * self._period
        return -min(max(GAIN * error, -limit), limit)
