"""What the safety gate says: its states, its decisions, and every rule with what to do when it was broken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from moe_robot.deploy.robot_io import GatedCommand

Broken = tuple[str, str]
"""The name of a rule that was broken, and what is wrong with the numbers."""

REMEDIES = {
    "finite": "check the policy, its normalisation and the robot's joint states",
    "shape": "check the policy's actions and the contract's joints",
    "joint limits": "check the policy's actions and the joints in the contract",
    "velocity": "check what an action of 1 means in the contract, and that the robot follows",
    "step": "check the policy's actions, and whether its chunks join",
    "workspace": "check the policy's actions and the tool in the contract",
    "freshness": "check that the robot publishes, the network and the clocks",
    "skew": "check the publishers' stamps and rates",
    "epoch": "see that the robot is as you expect",
    "enabled": "enable it when the robot may move",
    "heartbeat": "see to the operator's program",
    "watchdog": "find out what the control loop waited for",
    "policy": "find out why the policy does not answer",
    "operator": "see that the robot may move",
}
"""Every rule, and what to do when it was broken."""


class State(Enum):
    """Whether commands may pass."""

    DISABLED = "disabled"
    ENABLED = "enabled"
    HELD = "held"


@dataclass(frozen=True)
class Failure:
    """A rule that was broken.

    Attributes:
        rule: one of :data:`REMEDIES`.
        message: one line: the rule, the numbers, what to do.
        at: when.
    """

    rule: str
    message: str
    at: float


@dataclass(frozen=True)
class Decision:
    """What the gate makes of a command.

    Attributes:
        send: to the robot, now; None for nothing. A hold is sent once.
        passed: the command when it may pass; in a dry run it is shown and not sent.
        failure: why it may not; when held, what the robot was held for.
        state: of the gate afterwards.
    """

    send: GatedCommand | None
    passed: GatedCommand | None
    failure: Failure | None
    state: State


def failure(broken: Broken, now: float) -> Failure:
    """The record of a broken rule: one line with the rule, the numbers and the remedy."""
    rule, wrong = broken
    return Failure(rule, f"{rule}: {wrong}; {REMEDIES[rule]}, then enable again", now)
