"""A window in which people watch a simulation: MuJoCo's own passive viewer, at the pace of the control loop."""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

import threading
import time
from typing import Any

from moe_envs.rendering import load_triton_first

CLOSING_SECONDS = 5.0


class Window:
    """MuJoCo's viewer on ``model`` and ``data``, which may be changed by others while it is open.

    Args:
        period: seconds of one control step; :meth:`show` returns no sooner than this after the time before.
    """

    def __init__(self, model: Any, data: Any, period: float) -> None:
        import mujoco.viewer

        load_triton_first()
        before = set(threading.enumerate())
        self._viewer = mujoco.viewer.launch_passive(model, data, show_left_ui=False, show_right_ui=False)
        self._threads = set(threading.enumerate()) - before
        self._period, self._due = period, 0.0

    def show(self) -> None:
        """Draw the present state. Without effect once the user has closed the window."""
        if self._viewer.is_running():
            self._viewer.sync()
            time.sleep(max(0.0, self._due - time.monotonic()))
            self._due = time.monotonic() + self._period

    def close(self) -> None:
        """Close the window and wait for its thread: a program that ends while it still draws would crash."""
        self._viewer.close()
        for thread in self._threads:
            thread.join(CLOSING_SECONDS)
