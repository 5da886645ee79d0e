"""From a recording to the steps that a policy is compared on: raw actions where they were recorded, else commands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moe_robot.deploy import motion
from moe_robot.deploy.backends.bag import BagRobot
from moe_robot.deploy.bag import Letter
from moe_robot.deploy.codecs import stamp_of
from moe_robot.deploy.contract import Contract
from moe_robot.deploy.instruction import instruction
from moe_robot.deploy.observation import observe
from moe_robot.deploy.recorded import ACTION, DIAGNOSTICS, DRY_RUN, INSTRUCTION, SENT
from moe_robot.deploy.robot_io import JointState, TwistCommand
from moe_robot.deploy.sync import match
from moe_robot.types import Observation, RecordedStep, UserError

SAME_S = 0.002
"""Stamps that differ by less are of the same observation."""
TWIST = ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")


@dataclass(frozen=True)
class _Seen:
    observation: Observation
    stamp: float  # of its oldest part


class RecordedSteps:
    """The steps of one recording, to be gone through once."""

    def __init__(self, path: Path, contract: Contract, task: str | None) -> None:
        """Open it.

        Args:
            path: an MCAP file, a rosbag2 folder or a ROS 1 bag.
            contract: of the robot.
            task: the instruction; None for the recorded one.

        Raises:
            UserError: it cannot be read, is of another robot, or does not say what was done or was to be done.
        """
        self._now = 0.0
        self._measured: JointState | None = None
        self._robot = BagRobot(contract, path, lambda: self._now)
        bag = self._bag = self._robot.bag
        self._contract = bag.contract
        command, gripper = contract.command.topic, contract.gripper.topic if contract.gripper else None
        prefixes = (SENT, DRY_RUN, "")
        prefix = next((prefix for prefix in prefixes if prefix + command in bag.types), None)
        self.what: Literal["actions", "commands"] = "actions" if ACTION in bag.types else "commands"
        """Whether the policy's raw actions are compared, or the commands that became of them."""
        if self.what == "commands" and prefix is None:
            raise UserError(f"{path} holds neither {ACTION} nor {command}: nothing says what the robot was told")
        self._topics = {ACTION} if self.what == "actions" else {f"{prefix}{command}"}
        self._gripper = f"{prefix}{gripper}" if gripper and self.what == "commands" else None
        self.task = instruction(self._instruction() if task is None else task)
        """The instruction."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the numbers of a step are called."""
        if self.what == "actions":
            return self._contract.action.names
        joints = tuple(joint.name for joint in self._contract.joints)
        names = TWIST if self._contract.command.sink == "twist" else joints
        return (*names, "gripper command") if self._gripper in self._bag.types else names

    def __iter__(self) -> Iterator[RecordedStep]:
        """All steps, in order.

        Raises:
            UserError: the file is damaged, or the robot does not tell what the policy needs.
        """
        done = self._bag.letters({*self._topics, *filter(None, [self._gripper])})
        seen: deque[_Seen] = deque(maxlen=int(2 * self._contract.max_command_age_s * self._contract.control_hz) + 16)
        begins, opening, letter = self._bag.begins, np.nan, next(done, None)
        self._now = begins
        self._robot.start()
        for at in self._moments():
            self._look(seen, at)
            come = []
            while letter is not None and letter.at <= at:
                come.append(letter)
                letter = next(done, None)
            for one in sorted(come, key=lambda one: one.topic != self._gripper):  # it is told after the arm
                if one.topic == self._gripper:
                    opening = float(_numbers(one, 1)[0])
                elif (step := self._step(one, seen, begins, opening)) is not None:
                    yield step

    def close(self) -> None:
        """Let go of the file."""
        self._robot.stop()

    def _moments(self) -> Iterator[float]:
        """When to look at what was sensed, on the wall clock: when the loop did, or when there was a command."""
        moment, period = self._bag.begins, self._contract.period_s
        if self.what == "actions":
            for letter in self._bag.letters({ACTION, DIAGNOSTICS}):
                if letter.topic == ACTION or letter.at > moment + period / 2:  # a step without an action
                    yield letter.at
                    moment = letter.at
            return
        for letter in self._bag.letters(self._topics):
            if letter.at > moment + 0.9 * period:  # some robots are commanded more often than the policy acts
                yield letter.at
                moment = letter.at

    def _look(self, seen: deque[_Seen], at: float) -> None:
        self._now = at
        sensed = match(self._robot.latest())
        found = observe(sensed, self._contract, self.task)
        if found is None or sensed.newest is None:
            return
        parts = [sensed.joints, *(sensed.images[name] for name in self._contract.cameras)]
        stamp = min(stamp_of(part.message) for part in parts if part and part.message)
        if not seen or abs(stamp - seen[-1].stamp) > SAME_S:
            seen.append(_Seen(found[0], stamp))
        self._measured = sensed.newest

    def _step(self, letter: Letter, seen: deque[_Seen], begins: float, opening: float) -> RecordedStep | None:
        period = self._contract.period_s
        if self.what == "actions":
            values, stamp = _numbers(letter, len(self._contract.action.names)), stamp_of(letter.message)
            answered = next((one for one in reversed(seen) if abs(one.stamp - stamp) <= SAME_S), None)
            if answered is None:
                return None
            ahead = max(round((letter.at - stamp) / period), 0)
            return RecordedStep(answered.observation, values, letter.at - begins, ahead)
        if not seen or self._measured is None or letter.at < self._now:  # one between two that are compared
            return None
        values, measured = self._command(letter), self._measured
        if self._gripper in self._bag.types:
            values = np.append(values, opening)
        if not np.isfinite(values).all():
            return None

        def as_recorded(action: np.ndarray) -> np.ndarray:
            command = motion.command(action, measured, self._contract, 0.0)
            told = command.twist if isinstance(command, TwistCommand) else command.positions[0]
            return told if len(values) == len(told) else np.append(told, self._told_gripper(command.opening))

        return RecordedStep(seen[-1].observation, values, letter.at - begins, as_recorded=as_recorded)

    def _command(self, letter: Letter) -> np.ndarray:
        """What the message asks for next: joint positions (N,) in the contract's order, or a twist (6,)."""
        contract, message = self._contract, letter.message
        if contract.command.sink == "twist":
            parts = (message["twist"][part][axis] for part in ("linear", "angular") for axis in "xyz")
            return np.array(list(parts), dtype=float)
        if contract.command.sink == "positions":
            return _numbers(letter, len(contract.joints))
        names, points = list(message["joint_names"]), message["points"]
        if not points or any(name not in names for name in contract.topic_names):
            raise UserError(f"a message on {letter.topic} has no point for every joint of the contract")
        return np.asarray(points[0]["positions"], dtype=float)[[names.index(name) for name in contract.topic_names]]

    def _told_gripper(self, opening: float | None) -> float:
        gripper = self._contract.gripper
        assert gripper is not None
        (closed, opened), (low, high) = gripper.opening, gripper.command
        return np.nan if opening is None else low + (opening - closed) / (opened - closed) * (high - low)

    def _instruction(self) -> str:
        if INSTRUCTION in self._bag.types:
            for letter in self._bag.letters({INSTRUCTION}):
                return str(letter.message["data"])
        raise UserError("the recording does not say what the robot was to do: give --instruction")


def _numbers(letter: Letter, n: int) -> np.ndarray:
    message: Any = letter.message
    values = np.asarray(message["position"] if "position" in message else message["data"], dtype=float)
    if values.shape != (n,):
        raise UserError(f"a message on {letter.topic} has {values.size} numbers, expected {n}: correct the contract")
    return values
