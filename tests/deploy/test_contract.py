from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_envs.pitstop import control
from moe_envs.pitstop.env import PitStopEnv
from moe_robot.deploy import contract as contracts
from moe_robot.deploy.address import refusal
from moe_robot.deploy.contract import load_contract
from moe_robot.registry import environment_features
from moe_robot.types import UserError

PITSTOP = Path(contracts.__file__).with_name("contracts") / "pitstop.yaml"
TWIST = """command:
  topic: /servo_node/delta_twist_cmds
  type: geometry_msgs/msg/TwistStamped
  frame: panda_link0
"""


@pytest.fixture(scope="module")
def world():
    return PitStopEnv()


@pytest.fixture(scope="module")
def pitstop():
    return load_contract("pitstop")


@pytest.fixture
def refused(tmp_path):
    """Loads the PitStop contract with one text replaced by another; gives the line of the error and what it says."""

    def load(old: str, new: str) -> tuple[int, str]:
        text = PITSTOP.read_text()
        assert old in text
        file = tmp_path / "robot.yaml"
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError) as caught:
            load_contract(file)
        message = str(caught.value)
        assert "\n" not in message
        place, _, said = message.removeprefix(f"{file}:").partition(": ")
        return int(place), said

    return load


def _line(start: str) -> int:
    """The first line of the PitStop contract that begins so, apart from its indentation."""
    lines = PITSTOP.read_text().splitlines(keepends=True)
    return next(i for i, line in enumerate(lines, 1) if line.lstrip(" -").startswith(start))


def test_the_shipped_contract_fits_the_pitstop_environment(pitstop, world):
    features = environment_features(world)
    pitstop.check_policy(features)
    assert features.mismatch(pitstop.features()) is None


def test_the_shipped_chain_is_that_of_the_simulated_arm(pitstop, world):
    rng = np.random.default_rng(0)
    for q in rng.uniform(world.chain.limits[:, 0], world.chain.limits[:, 1], (50, 7)):
        for mine, theirs in zip(pitstop.chain.forward(q), world.chain.forward(q), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)  # the model file rounds its quaternions
    np.testing.assert_allclose(pitstop.chain.limits, world.chain.limits)


def test_the_shipped_limits_leave_room_for_every_motion_that_the_simulated_arm_makes(pitstop):
    workspace = np.array(pitstop.tool.workspace)
    assert np.all(workspace[:, 0] <= control.WORKSPACE[:, 0])
    assert np.all(workspace[:, 1] >= control.WORKSPACE[:, 1])
    assert all(joint.velocity >= control.MAX_JOINT_SPEED for joint in pitstop.joints)
    assert pitstop.action.units == pytest.approx([control.POSITION_UNIT] * 3 + [control.YAW_UNIT])


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("max_skew_s:", "max_skw_s:", "max_skew_s", "unknown key 'max_skw_s': did you mean max_skew_s"),
        ("    rate_hz: 10\n", "    rate: 10\n", "rate_hz: 10", "cameras.front: unknown key 'rate': did you mean"),
        ("clock: shared", "clock: shred", "clock:", "clock: unknown value 'shred': did you mean shared"),
        ("control_hz: 10 ", "control_hz: ten ", "control_hz", "control_hz: expected a whole number, got 'ten'"),
        ("velocity: 2.5", "velocity: inf", "velocity: 2.5", "joints[0].velocity: expected a finite number"),
        ("velocity: 2.5", "velocity: '2.5'", "velocity: 2.5", "joints[0].velocity: expected a finite number"),
        ("size: [96, 96]", "size: [96]", "size:", "cameras.front.size: expected 2 entries, got 1"),
        ("size: [96, 96]", "size: 96", "size:", "cameras.front.size: expected a list, got '96'"),
        ("size: [96, 96]", "size: [96, 9999]", "size:", "cameras.front.size: [96, 9999] is not offered"),
        ("robot: pitstop", "robot:", "robot:", "robot: expected a text (put it in quotes), got nothing"),
        ("ros: 2", "robot: 2", "ros: 2", "robot: stands here again after line 2: remove one"),
        ("max_age_s: 0.15", "max_age_s: 0.01", "max_age_s: 0.15", "0.01 s is shorter than the 0.02 s between"),
        ("[-2.8973, 2.8973]", "[2.8973, -2.8973]", "position: [-2.8973", "joints[0].position: [2.8973, -2.8973] is no"),
        ("velocity: 2.5", "velocity: 0", "velocity: 2.5", "joints[0].velocity: 0 is not above 0"),
        ("name: joint2", "name: joint1", "joints:", "joints: the name 'joint1' stands twice"),
        ("[panda_finger_joint1, ", "[panda_joint7, ", "joints:", "joints: the topic_name 'panda_joint7' stands twice"),
        ("    axis: [0, 0, 1]\n", "", "joints:", "joints: 'joint1' has no axis, but a tool needs the whole chain"),
        ("axis: [0, 0, 1]", "axis: [0, 0, 2]", "axis:", "joints[0].axis: [0.0, 0.0, 2.0] has length 2, expected 1"),
        ("- hand.x", "- hand.w", "state:", "state: unknown state 'hand.w': did you mean"),
        ("units: [0.40, ", "units: [", "action:\n", "action: 3 units for 5 names and the gripper's last action"),
        ("cartesian_delta ", "joint_delta ", "action:\n", "action: 4 joint actions for 7 joints"),
        ("topic: /joint_states", "topic: joint states", "topic: /joint_states", "'joint states' is no topic"),
        ("/wrist/image_raw", "/front/image_raw", "cameras:", "the topic '/front/image_raw/compressed' stands twice"),
        ("[hand.dx, hand.dy", "[hand.dx, hand.dx", "names:", "action.names: 'hand.dx' stands twice"),
        ("heartbeat_s: 0.5", "heartbeat_s: 0.05", "heartbeat_s", "is shorter than a control step of 0.1 s"),
        ("ws://127.0.0.1:9090 ", "ws://robot.lab:9090 ", "address", "'ws://robot.lab:9090' is neither encrypted nor"),
        ("goals: [[0.26, ", "goals: [[0.2, ", "goals:", "tool.goals: [0.2, 0.74] is beyond the workspace [0.25, 0.75]"),
        ("  attitude: ", "  # attitude: ", "tool:", "need the attitude that the tool keeps"),
        ("  posture: [0, ", "  posture: [", "tool:", "needs a posture of 7 joint positions"),
        ("action: [-1, 1]", "action: [1, 1]", "action: [-1, 1]", "closed and open are both 1"),
        ("robot: pitstop", "robot: [", "ros:", "this is no YAML"),
    ],
)
def test_a_mistake_is_refused_with_its_line(refused, old, new, at, says):
    line, said = refused(old, new)
    assert says in said
    assert line == _line(at)


def test_a_missing_key_is_named_with_the_section_that_lacks_it(refused):
    line, said = refused("    topic: /wrist/image_raw/compressed\n", "")
    assert (line, said) == (_line("wrist:") + 1, "cameras.wrist: the key 'topic' is missing: add it here")


@pytest.mark.parametrize("topic", ["/forward_velocity_controller/commands", "/joint_effort_controller/commands"])
def test_positions_are_not_sent_to_a_velocity_or_effort_controller(refused, topic):
    line, said = refused("/forward_position_controller/commands", topic)
    assert line == _line("topic: /forward_position_controller/commands")
    assert "name a position controller" in said


def test_a_velocity_sink_is_refused_unless_the_robot_stops_by_itself(refused, tmp_path):
    command = PITSTOP.read_text()[PITSTOP.read_text().index("command:\n  topic") :]
    line, said = refused(command, TWIST)
    assert line == _line("type: std_msgs")
    assert "state the robot's own stop in robot_timeout_s" in said
    _, said = refused(command, TWIST + "  robot_timeout_s: 0.2\n")
    assert "add speed_step, turn_step" in said
    text = PITSTOP.read_text().replace(command, TWIST + "  robot_timeout_s: 0.2\n")
    (tmp_path / "twist.yaml").write_text(
        text.replace("  turn: 2.0 ", "  speed_step: 0.2\n  turn_step: 1\n  turn: 2.0 ")
    )
    assert load_contract(tmp_path / "twist.yaml").command.sink == "twist"


def test_a_policy_that_would_misread_the_robot_is_refused_by_the_first_difference(pitstop):
    features = pitstop.features()
    names = list(features.state_names)
    names[1], names[2] = names[2], names[1]
    for policy, says in (
        (replace(features, state_names=tuple(names)), "state 1 is 'joint2.pos', expected 'joint3.pos'"),
        (replace(features, state_names=tuple(names[:1])), "has 19 entries, expected 1; the first over is 'joint2.pos'"),
        (replace(features, action_names=(*features.action_names, "x")), "expected 6; the first over is 'x'"),
        (replace(features, cameras={"left": (96, 96)}), "camera 'left' is missing"),
        (replace(features, cameras={"front": (48, 96)}), "camera 'front' is 96x96 pixels, expected 48x96"),
        (replace(features, fps=20), "control runs at 10 Hz, expected 20 Hz"),
    ):
        with pytest.raises(UserError, match="the contract of pitstop does not fit the policy") as caught:
            pitstop.check_policy(policy)
        assert says in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused_in_one_line(tmp_path):
    for name, says in (("none.yaml", "No such file"), ("pitstp", "did you mean pitstop")):
        with pytest.raises(UserError, match=says):
            load_contract(name)
    for content, says in ((b"\xff\xfe", "no text in UTF-8"), (b"", "the file is empty"), (b"[1]", "expected keys")):
        (tmp_path / "robot.yaml").write_bytes(content)
        with pytest.raises(UserError, match=says):
            load_contract(tmp_path / "robot.yaml")


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_contract(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["ws://127.0.0.1:9090", "ws://localhost:9090", "ws://[::1]:9090", "wss://robot.lab", "ws://known.lab"]
)
def test_an_address_that_nobody_can_listen_on_is_taken(address):
    assert refusal(address, ("known.lab",)) is None


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ws://10.0.0.7:9090", "neither encrypted"),
        ("ws://localhost.evil.org", "neither encrypted"),
        ("ws://127.0.0.1.evil.org", "neither encrypted"),
        ("http://127.0.0.1:9090", "no websocket address"),
        ("ws://", "no websocket address"),
        ("ws://127.0.0.1:port", "no address"),
        ("ws://[::1", "no address"),
        ("wss://me:secret@robot.lab", "holds a password"),
    ],
)
def test_an_address_that_others_could_speak_on_is_refused(address, says):
    assert says in (refusal(address, ("known.lab",)) or "")
    assert "secret" not in (refusal(address) or "")
