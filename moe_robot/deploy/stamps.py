"""Translates the robot's stamps to the clock that everything here is timed by."""

from __future__ import annotations

import math

WINDOW_S = 1.0
"""The offset of an unsynchronised clock follows from the quickest message of the last one to two windows."""
JUMP_S = 1.0
"""Stamps of an unsynchronised clock that go back by more than this began anew: a restarted simulation, a looped bag."""


class StampClock:
    """Knows how the robot's stamps and the local monotonic clock correspond. All times in seconds. For one thread.

    With ``shared`` the stamps are of the wall clock here: the age of a message at its receipt is known exactly, and a
    slow way is seen. Without, only the difference to the quickest recent message is known: a delay that all messages
    have is not seen, nor a clock that runs a little fast or slow.
    """

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self.restart()

    def restart(self) -> None:
        """Forget all stamps: what comes next may be of another clock."""
        self._newest = -math.inf
        self._window_end = -math.inf
        self._offsets = (math.inf, math.inf)  # the smallest of the last window, and of this one

    def began_anew(self, stamp: float) -> bool:
        """Whether ``stamp`` shows that an unsynchronised clock was set back."""
        return not self._shared and stamp < self._newest - JUMP_S

    def sensed(self, stamp: float, received: float, wall: float) -> float:
        """When, on the local clock, that happened which is stamped ``stamp``.

        Args:
            stamp: of the message, on the robot's clock.
            received: when it came, on the local clock.
            wall: when it came, on the wall clock here.
        """
        if self._shared:
            return received - (wall - stamp)
        self._newest = max(self._newest, stamp)
        if received > self._window_end:
            self._window_end, self._offsets = received + WINDOW_S, (self._offsets[1], math.inf)
        self._offsets = (self._offsets[0], min(self._offsets[1], received - stamp))
        return stamp + min(self._offsets)

    def stamp(self, now: float, wall: float) -> float:
        """The stamp of something sent now; 0, ROS's "now", while the robot's clock is unknown."""
        if self._shared:
            return wall
        offset = min(self._offsets)
        return now - offset if math.isfinite(offset) else 0.0
