"""The safety gate's rules about time: nothing too old, from the future, or too far apart (pure functions)."""

from __future__ import annotations

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.robot_io import Command
from moe_robot.deploy.sync import Sensed

FUTURE_S = 0.02
"""Stamps may lie ahead of the clock by this much, as those of synchronised computers do."""


def stale(contract: Contract, sensed: Sensed, now: float) -> str | None:
    """What of the sensors is absent, too old or from the future at the time ``now``."""
    states = contract.joint_states
    if sensed.newest is None:
        return f"no joint state has come on {states.topic} since the connection was made"
    if wrong := wrong_age(sensed.newest.sensed, sensed.newest.received, states.max_age_s, now):
        return f"the newest joint state on {states.topic} {wrong}"
    for name, camera in contract.cameras.items():
        image = sensed.images.get(name)
        if image is None:
            return f"no picture of camera {name!r} has come on {camera.topic} since the connection was made"
        if wrong := wrong_age(image.sensed, image.received, camera.max_age_s, now):
            return f"the newest picture of camera {name!r} on {camera.topic} {wrong}"
    return None


def skewed(contract: Contract, sensed: Sensed) -> str | None:
    """Whether pictures and joint state of one observation were sensed too far apart."""
    if sensed.joints is None:
        return None
    all_times = [sensed.joints.sensed, *(image.sensed for image in sensed.images.values())]
    if max(all_times) - min(all_times) <= contract.max_skew_s:
        return None
    times = {f"camera {name!r}": image.sensed for name, image in sensed.images.items()}
    times["the joint state"] = sensed.joints.sensed
    first, last = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    skew = times[last] - times[first]
    return f"{last} was sensed {skew:.3f} s after {first}, allowed are {contract.max_skew_s:g} s"


def outdated(contract: Contract, command: Command, now: float) -> str | None:
    """Whether a command answers an observation that is too old, or one from the future."""
    wrong = wrong_age(command.observed, command.observed, contract.max_command_age_s, now)
    return f"the observation that the command answers {wrong}" if wrong else None


def wrong_age(sensed: float, received: float, limit: float, now: float) -> str | None:
    """What is wrong with the age of something, or None.

    It counts from the older of both times: neither a slow way nor a wrong stamp makes an old thing young.
    """
    age = now - min(sensed, received)
    if not age <= limit:  # so written, NaN is too old
        return f"is {age:.3f} s old, allowed are {limit:g} s"
    if max(sensed, received) > now + FUTURE_S:
        return f"is from {max(sensed, received) - now:.3f} s in the future"
    return None
