"""Records a deployment to an MCAP file from a process of its own: whatever the disk does, the control loop goes on.

What the loop hands over waits in a bounded queue; when that is full, it is dropped and counted. The file outlives this
program: when it is killed, the other process sees its pipe end and finishes the file.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_robot.deploy import cdr
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.decision import Decision
from moe_robot.deploy.loop import Step
from moe_robot.deploy.recorded import Entry, Tap, instruction
from moe_robot.deploy.recorder import serve
from moe_robot.types import UserError

QUEUED_S = 2.0
"""Of steps and decisions that may wait for the other process."""
STARTING_S, ENDING_S = 60.0, 10.0
"""How long the other process may take to open the file, and to write the rest."""


@dataclass(frozen=True)
class Recorded:
    """What became of a recording.

    Attributes:
        path: of the file.
        messages: that it holds.
        dropped: messages that were not recorded, for the queue was full or the other process gone.
        refused: messages that could not be written as what they should be.
        trouble: one line when something went wrong; None when nothing did.
    """

    path: Path
    messages: int
    dropped: int
    refused: int
    trouble: str | None

    @property
    def complete(self) -> bool:
        """Whether it holds everything."""
        return not (self.dropped or self.refused or self.trouble)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"path": str(self.path), "complete": self.complete}

    def __str__(self) -> str:
        lost = f"; {self.dropped} messages were dropped, {self.refused} could not be written" * (not self.complete)
        return f"{self.path}: {self.messages} messages{lost}{f' ({self.trouble})' if self.trouble else ''}"


class Recorder:
    """Takes control steps and decisions from any thread, and never makes one wait."""

    def __init__(self, path: Path, contract: Contract, about: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Nothing is written yet.

        Args:
            path: of a new file; its folder is made if need be.
            contract: of the robot.
            about: kept in the file.
            say: told at once, in one line, when the recording is no longer complete.

        Raises:
            UserError: the file is there already, is not called ``.mcap``, or ``rosbags`` is not installed.
        """
        cdr.check_installed()
        if path.suffix != ".mcap":
            raise UserError(f"--record {path}: expected a name that ends with .mcap")
        if path.exists():
            raise UserError(f"--record {path}: the file is there already: give another name")
        self._path, self._contract, self._say = path, contract, say
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        arguments = (self._theirs, path, dict(about))
        self._process = context.Process(target=serve, args=arguments, name="recorder", daemon=True)
        self._queue: queue.Queue[list[Entry] | None] = queue.Queue(int(2 * QUEUED_S * contract.control_hz) + 16)
        self._thread = threading.Thread(target=self._pass_on, name="recording", daemon=True)
        self._lock, self._dropped, self._trouble = threading.Lock(), 0, ""
        self._tap: Tap | None = None
        self._offset = 0.0
        self._result = (0, 0)

    def start(self, now: Callable[[], float], task: str) -> None:
        """Open the file.

        Args:
            now: the robot's clock, :meth:`moe_robot.deploy.robot_io.RobotIO.now`.
            task: the instruction.

        Raises:
            UserError: it cannot be written.
        """
        self._process.start()
        self._theirs.close()  # so that the child sees our end, and we see its
        if not self._pipe.poll(STARTING_S):
            raise UserError(f"--record {self._path}: nothing could be written for {STARTING_S:g} s")
        kind, content = self._hear()
        if kind != "ready":
            raise UserError(f"--record {self._path}: {content}")
        self._offset = time.time() - now()
        self._tap = Tap(self._contract, self._offset)
        self._thread.start()
        self._put([instruction(task, now())])

    def step(self, step: Step) -> None:
        """One more control step; for ``ControlLoop.run(on_step=...)``."""
        if self._tap is not None:
            self._put(self._tap.step(step))

    def decided(self, decision: Decision, now: float) -> None:
        """One more decision of the gate; for ``GuardedRobot(tell=...)``."""
        if self._tap is not None:
            self._put(self._tap.decision(decision, now))

    def stop(self) -> Recorded:
        """Write what waits, and close the file. Safe to call again."""
        self._tap = None
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._queue.put(None, timeout=ENDING_S)
            self._thread.join(ENDING_S)
            if self._thread.is_alive():
                self._fail(f"what waited could not be written within {ENDING_S:g} s")
                self._process.kill()  # which ends the thread's waiting
        if self._process.pid is not None:
            self._pipe.close()
            self._process.join(ENDING_S)
            self._process.kill()
            self._process.join()
        messages, refused = self._result
        return Recorded(self._path, messages, self._dropped, refused, self._trouble or None)

    def _put(self, entries: list[Entry]) -> None:
        try:
            self._queue.put_nowait(entries)
        except queue.Full:
            self._drop(len(entries), "the disk or the machine is too slow")

    def _pass_on(self) -> None:
        """The thread: from the queue to the other process, and its last words."""
        while (entries := self._queue.get()) is not None:
            try:
                self._pipe.send([(e.topic, e.kind, e.message, round((e.at + self._offset) * 1e9)) for e in entries])
            except OSError:
                self._drop(len(entries), self._last_words())
        with suppress(OSError):
            self._pipe.send(None)
            self._last_words()

    def _last_words(self) -> str:
        kind, content = self._hear()
        if kind == "done":
            self._result = content
            return ""
        if not self._trouble:
            self._fail(str(content))
        return self._trouble

    def _hear(self) -> tuple[str, Any]:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return "failed", "the process that writes it ended"

    def _drop(self, entries: int, why: str) -> None:
        with self._lock:
            first, self._dropped = not self._dropped, self._dropped + entries
        if first:
            self._fail(why)

    def _fail(self, why: str) -> None:
        if not self._trouble:
            self._trouble = why
            self._say(f"THE RECORDING {self._path} IS NO LONGER COMPLETE: {why}")
