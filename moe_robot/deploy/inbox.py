"""What a backend has received: only the newest picture of each camera, and recent joint states in order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_robot.deploy.codecs import BadMessage, joint_state, picture, stamp_of
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.freshness import FUTURE_S
from moe_robot.deploy.robot_io import Image, JointState, Snapshot, Status
from moe_robot.deploy.stamps import StampClock
from moe_robot.deploy.sync import JointHistory

LATE_S = 1.0
"""A message that comes this long after its stamp is told of: a slow bridge, or clocks that differ."""
LONGEST_TROUBLE = 300
"""Characters: what a stranger wrote into a message is not repeated at any length."""


@dataclass(frozen=True)
class _Slot:
    """The newest message of one camera, not decoded until somebody looks."""

    message: Mapping[str, Any]
    sensed: float
    received: float


class Inbox:
    """Takes ROS messages as plain dicts and gives snapshots. One thread may take while others look.

    A picture that nobody looks at before the next one comes is never decoded. Messages that do not fit the contract
    are counted and left out: what they would have told grows old, and the safety gate sees that.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract, self._lock, self._looking = contract, threading.Lock(), threading.Lock()
        self._cameras = {camera.topic: name for name, camera in contract.cameras.items()}
        self._clock, self._history = StampClock(contract.clock == "shared"), JointHistory()
        self._waiting: dict[str, _Slot] = {}
        self._newest: dict[str, float] = {}
        self._images: dict[str, Image] = {}
        self._counts: Counter[str] = Counter()
        self._trouble: str | None = None
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """As in :class:`moe_robot.deploy.robot_io.Snapshot`."""
        return self._epoch

    def begin_epoch(self) -> None:
        """Forget all that came before: the connection is new, or the robot's clock was set back."""
        with self._lock:
            self._begin_epoch()

    def take(self, topic: str, message: Mapping[str, Any], received: float, wall: float) -> None:
        """Take in a message that came at ``received`` on the local and at ``wall`` on the wall clock, seconds."""
        with self._lock:
            try:
                stamp = stamp_of(message)
                if self._clock.began_anew(stamp):
                    self._begin_epoch()
                    self._note("clock set back", f"the stamps on {topic} went back: the robot's clock began anew")
                sensed = self._clock.sensed(stamp, received, wall)
                if sensed > received + FUTURE_S:  # kept, it would pass for the newest until its time comes
                    raise BadMessage(f"it is stamped {sensed - received:.3f} s in the future; synchronise the clocks")
                if topic == self._contract.joint_states.topic:
                    measured = joint_state(message, self._contract)
                    new = self._history.add(JointState(*measured, sensed, received, message))
                else:
                    new = self._wait(self._cameras[topic], _Slot(message, sensed, received))
                self._note("received" if new else "repeated or late")
                if received - sensed > LATE_S:
                    self._note("old on arrival", f"a message on {topic} came {received - sensed:.3f} s after its stamp")
            except BadMessage as error:
                self._note("refused", f"a message on {topic} was refused: {error}")

    def snapshot(self) -> Snapshot:
        """The newest of everything. Decodes the pictures that are new since the last look."""
        with self._looking:
            with self._lock:
                waiting, self._waiting, epoch = self._waiting, {}, self._epoch
            for name, slot in waiting.items():
                self._decode(name, slot, epoch)
            with self._lock:
                return Snapshot(dict(self._images), self._history.recent(), self._epoch)

    def stamp(self, now: float, wall: float) -> float:
        """The stamp, on the robot's clock, of something sent now."""
        with self._lock:
            return self._clock.stamp(now, wall)

    def count(self, what: str, trouble: str | None = None) -> None:
        """Count something that happened to the connection; ``trouble`` is one line when it went wrong."""
        with self._lock:
            self._note(what, trouble)

    def status(self, connected: bool) -> Status:
        """Counts and the latest trouble, with what the backend knows of the connection."""
        with self._lock:
            return Status(connected, self._epoch, dict(self._counts), self._trouble)

    def _wait(self, name: str, slot: _Slot) -> bool:
        if slot.sensed <= self._newest.get(name, float("-inf")):
            return False
        self._newest[name], self._waiting[name] = slot.sensed, slot
        return True

    def _decode(self, name: str, slot: _Slot, epoch: int) -> None:
        camera = self._contract.cameras[name]
        try:
            image = Image(picture(slot.message, camera), slot.sensed, slot.received, slot.message)
        except BadMessage as error:
            self.count("refused", f"a message on {camera.topic} was refused: {error}")
            return
        with self._lock:
            if epoch == self._epoch:  # else it is of the time before
                self._images[name] = image

    def _begin_epoch(self) -> None:
        self._epoch += 1
        self._clock.restart()
        self._history.clear()
        for kept in (self._waiting, self._newest, self._images):
            kept.clear()

    def _note(self, what: str, trouble: str | None = None) -> None:
        self._counts[what] += 1
        self._trouble = trouble[:LONGEST_TROUBLE] if trouble else self._trouble
