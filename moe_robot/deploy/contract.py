"""The contract of one robot: topics, joints, limits, rates and the meaning of actions, read from one YAML file.

Recording, deployment, replay and the simulated robot all read the same file. ``contracts/pitstop.yaml`` beside this
module is one to copy from, with a comment on every key. Positions are in metres and radians, times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

from moe_robot.deploy.address import refusal
from moe_robot.deploy.contract_body import Gripper, Joint, Tool
from moe_robot.deploy.contract_topics import Action, Camera, CommandSink, JointStates, first_repeated
from moe_robot.deploy.typed_yaml import Inconsistent, read
from moe_robot.kinematics import SerialChain
from moe_robot.registry import unknown
from moe_robot.types import Features, UserError

SHIPPED = resources.files("moe_robot.deploy") / "contracts"
GRIPPER_STATE = "gripper.opening"
TOOL_STATES = ("x", "y", "z", "yaw")
"""What can be observed of the tool, after its name: ``hand.x``."""


@dataclass(frozen=True)
class Contract:
    """What a robot and a policy agree on.

    Attributes:
        robot: its name, for people and reports.
        address: of the rosbridge server, ``ws://`` or ``wss://``.
        ros: 1 or 2; decides how message types and stamps are spelled.
        clock: ``shared`` when the robot's stamps come from this computer's clock or one synchronised with it;
            ``robot`` when they do not (a simulated clock, no time service): then the offset is estimated, a constant
            delay cannot be seen, and age counts from receipt.
        control_hz: control steps per second, the rate the policy was trained at.
        heartbeat_s: the operator's heartbeat may be this old while the robot is enabled.
        max_command_age_s: a command may answer an observation this old; with action chunks, how long one may be played.
        max_skew_s: the stamps of the images and of the joint state in one observation may lie this far apart.
        cameras: camera name of the policy -> where its pictures come from.
        joint_states: where joint states come from.
        joints: the arm's joints in the policy's order.
        state: names of the policy's state vector: ``<joint>.pos``, ``<joint>.vel``, ``gripper.opening``, and
            ``<tool>.x``, ``.y``, ``.z``, ``.yaw``.
        action: what the policy's numbers mean.
        command: where commands go.
        tool: end of the kinematic chain with its workspace, or None for a robot without one here.
        gripper: its mapping, or None for a robot without one; its action is the last one.
        insecure_hosts: hosts that plain ``ws://`` may be used with although they are not this machine.
    """

    robot: str
    address: str
    ros: Literal[1, 2]
    clock: Literal["shared", "robot"]
    control_hz: int
    heartbeat_s: float
    max_command_age_s: float
    max_skew_s: float
    cameras: Mapping[str, Camera]
    joint_states: JointStates
    joints: tuple[Joint, ...]
    state: tuple[str, ...]
    action: Action
    command: CommandSink
    tool: Tool | None = None
    gripper: Gripper | None = None
    insecure_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("control_hz", "max_skew_s"):
            if not getattr(self, key) > 0:
                raise Inconsistent(key, f"{getattr(self, key)} is not above 0")
        for key in ("heartbeat_s", "max_command_age_s"):
            if getattr(self, key) < self.period_s:
                raise Inconsistent(key, f"is shorter than a control step of {self.period_s:g} s: raise it")
        if reason := refusal(self.address, self.insecure_hosts):
            raise Inconsistent("address", reason)
        self._check_topics()
        self._check_joints()
        self._check_state()
        self._check_action()
        self._check_command()

    def _check_topics(self) -> None:
        heard = [*(camera.topic for camera in self.cameras.values()), self.joint_states.topic]
        if again := first_repeated([*heard, self.command.topic, *([self.gripper.topic] if self.gripper else ())]):
            raise Inconsistent("cameras", f"the topic {again!r} stands twice in this file: each thing needs its own")

    def _check_joints(self) -> None:
        if not self.joints:
            raise Inconsistent("joints", "there are none: name at least one")
        told = [*self.topic_names, *(self.gripper.joints if self.gripper else ())]
        for what, names in (("name", [joint.name for joint in self.joints]), ("topic_name", told)):
            if again := first_repeated(names):
                raise Inconsistent("joints", f"the {what} {again!r} stands twice: every joint needs its own")
        for joint in self.joints:
            if (joint.axis is None) == (self.tool is not None):
                wrong = "has no axis, but a tool needs the whole chain" if self.tool else "has an axis without a tool"
                raise Inconsistent("joints", f"{joint.name!r} {wrong}: give the tool and every joint's axis, or none")

    def _check_state(self) -> None:
        known = [f"{joint.name}.{what}" for joint in self.joints for what in ("pos", "vel")]
        known += [GRIPPER_STATE] if self.gripper else []
        known += [f"{self.tool.name}.{what}" for what in TOOL_STATES] if self.tool else []
        for name in self.state:
            if name not in known:
                raise Inconsistent("state", str(unknown("state", name, known)))

    def _check_action(self) -> None:
        names, meaning = self.action.names, self.action.meaning
        n = len(names) - (self.gripper is not None)
        if len(self.action.units) != n:
            last = " and the gripper's last action, which has none" if self.gripper else ""
            raise Inconsistent("action", f"{len(self.action.units)} units for {len(names)} names{last}: expected {n}")
        if meaning == "cartesian_delta":
            if self.tool is None:
                raise Inconsistent("action", "cartesian_delta needs the kinematic chain: add a tool")
            if n not in (3, 4, 6):
                raise Inconsistent("action", f"{n} Cartesian actions: expected 3 (way), 4 (way, yaw) or 6 (way, turn)")
        elif n != len(self.joints):
            raise Inconsistent("action", f"{n} joint actions for {len(self.joints)} joints: name one per joint")

    def _check_command(self) -> None:
        tool = self.tool if self.action.meaning == "cartesian_delta" else None
        if self.command.sink == "twist":
            if tool is None:
                raise Inconsistent("command", f"a twist cannot carry {self.action.meaning}: expected cartesian_delta")
            if tool.speed_step is None or tool.turn_step is None:
                raise Inconsistent("tool", "a twist sink needs the largest change per step: add speed_step, turn_step")
        elif tool is not None:
            if len(tool.posture or ()) != len(self.joints):
                raise Inconsistent("tool", f"a Cartesian policy needs a posture of {len(self.joints)} joint positions")
            if len(self.action.units) == 4 and tool.attitude is None:
                raise Inconsistent("tool", "actions with a yaw alone need the attitude that the tool keeps: add it")

    @property
    def period_s(self) -> float:
        """Length of a control step, seconds."""
        return 1.0 / self.control_hz

    @property
    def topic_names(self) -> tuple[str, ...]:
        """The arm's joints as JointState messages call them, in the policy's order."""
        return tuple(joint.topic_name or joint.name for joint in self.joints)

    @cached_property
    def chain(self) -> SerialChain | None:
        """The kinematic chain from the base to the tool, or None without a tool."""
        return self.tool.chain(self.joints) if self.tool else None

    def features(self) -> Features:
        """What this robot gives a policy and takes from it."""
        sizes = {name: camera.size for name, camera in self.cameras.items()}
        return Features(sizes, self.state, self.action.names, self.control_hz)

    def check_policy(self, policy: Features) -> None:
        """Refuse a policy that would misread this robot.

        Raises:
            UserError: the first thing that differs, by name.
        """
        mine = self.features()
        for kind, wanted, given in (
            ("state", policy.state_names, mine.state_names),
            ("action", policy.action_names, mine.action_names),
        ):
            for i, (theirs, ours) in enumerate(zip(wanted, given, strict=False)):
                if theirs != ours:
                    raise self._misfit(f"{kind} {i} is {ours!r}, expected {theirs!r}")
            if len(wanted) != len(given):
                first = (wanted if len(wanted) > len(given) else given)[min(len(wanted), len(given))]
                raise self._misfit(
                    f"{kind} has {len(given)} entries, expected {len(wanted)}; the first over is {first!r}"
                )
        if difference := policy.mismatch(mine):
            raise self._misfit(difference)

    def _misfit(self, difference: str) -> UserError:
        return UserError(f"the contract of {self.robot} does not fit the policy: {difference}; correct the contract")


def load_contract(path: str | Path) -> Contract:
    """The contract in a YAML file, or a shipped one by its bare name (``pitstop``).

    Raises:
        UserError: ``FILE:LINE: what is wrong, what was expected``, or no such file.
    """
    shipped = {file.name.removesuffix(".yaml"): file for file in SHIPPED.iterdir()}
    if str(path) in shipped:
        with resources.as_file(shipped[str(path)]) as file:
            return read(Contract, file)
    if not Path(path).suffix:
        raise unknown("contract", str(path), shipped)
    return read(Contract, Path(path))
