"""The policy in a process of its own: however long it thinks, and whatever it holds, the control loop goes on.

A thread would not do: a policy that hangs in C code with the interpreter lock held stops every thread of its process,
the watchdog's too.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from moe_robot.deploy.chunks import Chunk
from moe_robot.types import Observation, UserError

Act = Callable[[Observation], np.ndarray]
"""From an observation to a chunk of actions (H, A)."""

LOADING_LOOK_S = 0.02
"""Between two looks whether the policy is loaded."""
LONGEST_REASON = 400
"""Characters of why a policy failed."""


class PolicyProcess:
    """Asks a policy in a child process, one observation at a time. For one thread."""

    def __init__(self, make: Callable[[], Act]) -> None:
        """Nothing runs yet.

        Args:
            make: called in the child, to load the policy; must be importable there (a function of a module, or a
                ``functools.partial`` of one).
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._theirs, make), name="policy", daemon=True)
        self._ready = False
        self._asked: float | None = None
        self._chunk: Chunk | None = None
        self._failure: str | None = None

    def start(self) -> None:
        """Begin to load the policy."""
        self._process.start()
        self._theirs.close()  # so that the child's end is the only one, and its death is seen

    def stop(self) -> None:
        """End the child, whatever it is doing."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._pipe.close()

    @property
    def failure(self) -> str | None:
        """Why the policy will answer no more, one line; None while it may."""
        return self._failure

    @property
    def ready(self) -> bool:
        """Whether the policy is loaded and waits for an observation."""
        self._listen()
        return self._ready and self._asked is None and self._failure is None

    def wait_until_ready(self, give_up: Callable[[], bool]) -> bool:
        """Wait for the policy to be loaded; False when ``give_up()`` came first.

        Raises:
            UserError: it cannot be loaded.
        """
        while not self.ready:
            if self.failure is not None:
                raise UserError(self.failure)
            if give_up():
                return False
            time.sleep(LOADING_LOOK_S)
        return True

    def ask(self, observation: Observation, observed: float) -> bool:
        """Have the policy think about an observation sensed at ``observed``; False while it is busy or gone."""
        if not self.ready:
            return False
        try:
            self._pipe.send(observation)
        except OSError:
            self._failure = self._failure or "the policy's process ended"
            return False
        self._asked = observed
        return True

    def answer(self) -> Chunk | None:
        """The chunk that it came to, once; None while it thinks. Never waits."""
        self._listen()
        chunk, self._chunk = self._chunk, None
        return chunk

    def _listen(self) -> None:
        """Take what the child says, if it says something."""
        if self._failure is not None:
            return
        try:
            if not self._pipe.poll():
                return
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            self._failure = "the policy's process ended"
            return
        if kind == "failed":
            self._failure = str(content)
        elif kind == "ready":
            self._ready = True
        elif self._asked is not None:
            self._chunk, self._asked = Chunk(content, self._asked), None


def _serve(pipe: Connection, make: Callable[[], Act]) -> None:
    """The child: load the policy, then answer observations until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        act = make()
        pipe.send(("ready", None))
        while True:
            pipe.send(("chunk", _checked(act(pipe.recv()))))
    except EOFError:
        pass  # the parent is gone
    except Exception as error:  # whatever a stranger's policy raises is told in one line, and ends it
        pipe.send(("failed", in_one_line(error)))


def in_one_line(error: Exception) -> str:
    """What a policy raised, for people; what is not meant for them is named by its kind."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:LONGEST_REASON]


def _checked(actions: Any) -> np.ndarray:
    actions = np.asarray(actions, dtype=float)
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"the policy gave actions of shape {actions.shape}, expected (H, A)")
    return actions
