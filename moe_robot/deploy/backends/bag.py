"""A robot that was: what a recording holds comes again, in its own time. It cannot be moved."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from moe_robot.deploy.bag import Bag, Letter
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.inbox import Inbox
from moe_robot.deploy.robot_io import GatedCommand, Snapshot, Status


class BagRobot:
    """``RobotIO`` of a recording. Messages come when :meth:`now` has reached their time, without a thread."""

    def __init__(self, contract: Contract, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Open the recording; its time begins with :meth:`start`.

        Args:
            contract: of the robot.
            path: an MCAP file, a rosbag2 folder or a ROS 1 bag.
            clock: seconds; a clock that stands still until it is set replays step by step.

        Raises:
            UserError: it cannot be read, or is of another robot.
        """
        self.bag, self._clock = Bag(path, contract), clock
        self._inbox = Inbox(self.bag.contract)
        self._letters: Iterator[Letter] = iter(())
        self._next: Letter | None = None
        self._shift = 0.0
        self._lock, self._dropped = threading.Lock(), Counter[str]()

    def start(self) -> None:
        """The recording begins now."""
        with self._lock:
            self._shift = self._clock() - self.bag.begins
            self._letters = self.bag.letters(self.bag.sources)
            self._next = next(self._letters, None)
            self._inbox.begin_epoch()

    def stop(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._next = None
            self.bag.close()

    def latest(self) -> Snapshot:
        """What has come by now."""
        with self._lock:
            now = self._clock()
            while self._next is not None and self._next.at + self._shift <= now:
                letter, self._next = self._next, next(self._letters, None)
                self._inbox.take(letter.topic, letter.message, letter.at + self._shift, letter.at)
        return self._inbox.snapshot()

    def send(self, command: GatedCommand) -> bool:
        """Count it: nobody is there to obey."""
        self._dropped["commands dropped"] += 1
        return False

    def now(self) -> float:
        """Seconds."""
        return self._clock()

    def status(self) -> Status:
        """Connected until the last message has come."""
        told = self._inbox.status(not self.over)
        return replace(told, counts={**told.counts, **self._dropped})

    @property
    def over(self) -> bool:
        """Whether all has come."""
        return self._next is None
