"""Brings together what was sensed at one time: joint states in order, and the one that fits the newest pictures."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from moe_robot.deploy.robot_io import Image, JointState, Snapshot

KEPT = 64
"""Joint states that are remembered: at 200 Hz a third of a second, more than a picture takes to arrive."""


@dataclass(frozen=True)
class Sensed:
    """What goes to the policy and to the safety gate together.

    Attributes:
        images: camera -> picture.
        joints: the joint state sensed nearest to the oldest of the pictures; None before the first.
        newest: the joint state sensed last, where the robot is now; None before the first.
        epoch: of the snapshot.
        recent: all joint states of the snapshot, oldest first.
    """

    images: Mapping[str, Image]
    joints: JointState | None
    newest: JointState | None
    epoch: int
    recent: tuple[JointState, ...] = ()


def match(snapshot: Snapshot) -> Sensed:
    """The newest pictures and the joint state nearest to them in time. Whether near enough, the safety gate judges."""
    joints = snapshot.joints
    if not joints:
        return Sensed(snapshot.images, None, None, snapshot.epoch)
    if not snapshot.images:
        return Sensed(snapshot.images, joints[-1], joints[-1], snapshot.epoch, joints)
    when = min(image.sensed for image in snapshot.images.values())
    return Sensed(snapshot.images, _nearest(joints, when), joints[-1], snapshot.epoch, joints)


def _nearest(joints: tuple[JointState, ...], when: float) -> JointState:
    after = bisect(joints, when, key=attrgetter("sensed"))
    around = joints[max(after - 1, 0) : after + 1]
    return min(around, key=lambda joint: abs(joint.sensed - when))


class JointHistory:
    """Recent joint states in the order they were sensed, whatever the order they arrive in. Not for several threads."""

    def __init__(self) -> None:
        self._states: list[JointState] = []

    def add(self, state: JointState) -> bool:
        """Take one in at its place; False when one of the same time is there already or it is older than all kept."""
        at = bisect(self._states, state.sensed, key=attrgetter("sensed"))
        if at and self._states[at - 1].sensed == state.sensed:
            return False
        if at == 0 and len(self._states) == KEPT:
            return False
        self._states.insert(at, state)
        del self._states[:-KEPT]
        return True

    def clear(self) -> None:
        """Forget all of them: a new epoch has begun."""
        self._states.clear()

    def recent(self) -> tuple[JointState, ...]:
        """All that are kept, oldest first."""
        return tuple(self._states)
