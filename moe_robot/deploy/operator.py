"""The operator at the terminal: says all the while that all is well, and what is typed enables, stops or ends."""

from __future__ import annotations

import os
import select
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, Protocol

from moe_robot.deploy.decision import State
from moe_robot.deploy.guard import GuardedRobot

KEYS = "e then Enter enables, Enter or space stops, q ends"
Wish = Literal["enable", "stop", "quit"]


class Keys:
    """Makes wishes of typed characters: one alone never moves the robot, and almost any stops it."""

    def __init__(self) -> None:
        self._typed_e = False

    def press(self, key: str) -> Wish | None:
        """What one more character means."""
        before, self._typed_e = self._typed_e, key in "eE"
        if self._typed_e:
            return None
        if key in "qQ":
            return "quit"
        return "enable" if before and key in "\r\n" else "stop"


class Simulation(Protocol):
    """What may be enabled by itself: see :class:`moe_robot.deploy.backends.rosbridge.RosbridgeRobot`."""

    @property
    def simulated(self) -> bool | None:
        """Whether the robot can hurt nobody; None while there is none."""
        ...

    @property
    def epoch(self) -> int:
        """Number of the connection."""
        ...


class Operator:
    """A thread that listens to the terminal. Its heartbeats cease when the terminal is closed or this program hangs."""

    def __init__(
        self,
        robot: GuardedRobot,
        live: bool,
        beat_every_s: float,
        say: Callable[[str], None],
        simulation: Simulation | None = None,
        terminal: int = 0,
        persistent: bool = False,
    ) -> None:
        """Nothing is listened to yet.

        Args:
            robot: that is enabled and stopped.
            live: whether enabling lets commands reach it.
            beat_every_s: seconds between heartbeats.
            say: shows a line.
            simulation: enable it without being asked, on every connection until it has moved; then it goes on without
                a terminal.
            terminal: file descriptor to read from.
            persistent: enable the simulation after every hold, until somebody stops it here.
        """
        self._robot, self._live, self._every, self._say = robot, live, beat_every_s, say
        self._simulation, self._terminal = simulation, terminal
        self._enabled_epoch, self._persistent, self._was_stopped = 0, persistent, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="operator", daemon=True)
        self.wants_to_quit = False
        """Whether the program is to end."""

    def start(self) -> None:
        """Begin to listen and to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and leave the terminal as it was."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        keys, present = Keys(), True
        with _every_key_at_once(self._terminal):
            while not self._over.is_set():
                if present and select.select([self._terminal], [], [], self._every)[0]:
                    typed = _read(self._terminal)
                    present = bool(typed)
                    for wish in map(keys.press, typed):
                        self._do(wish)
                    if not present and self._simulation is None:
                        self._robot.trip("operator", "the terminal was closed")
                        self._say("the terminal was closed: nobody can enable the robot any more")
                elif not present:
                    self._over.wait(self._every)
                if present or self._simulation is not None:
                    self._robot.beat()
                self._enable_simulation()

    def _do(self, wish: Wish | None) -> None:
        if wish is None:
            return
        if wish == "enable":
            refusal = self._robot.enable(self._live)
            self._say(f"not enabled: {refusal.message}" if refusal else "enabled")
        else:
            self._was_stopped = True
            self._robot.trip("operator", "stop was pressed" if wish == "stop" else "the program is to end")
            self.wants_to_quit = self.wants_to_quit or wish == "quit"

    def _enable_simulation(self) -> None:
        simulation = self._simulation
        if simulation is None or not simulation.simulated or self._robot.state is State.ENABLED:
            return
        epoch = simulation.epoch
        # What was held before its first command has not begun: its referee waits for one.
        again = not self._was_stopped and (self._persistent or not self._robot.moved)
        if (again or epoch != self._enabled_epoch) and self._robot.enable(self._live) is None:
            self._enabled_epoch = epoch


def _read(terminal: int) -> str:
    """What was typed; nothing when the terminal is gone."""
    try:
        return os.read(terminal, 64).decode(errors="replace")
    except OSError:  # of a terminal that was closed while we held it
        return ""


@contextmanager
def _every_key_at_once(terminal: int) -> Iterator[None]:
    """Keys are read when they are pressed, not line by line; what is no terminal is left as it is."""
    if not os.isatty(terminal):
        yield
        return
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(terminal, termios.TCSANOW, before)
