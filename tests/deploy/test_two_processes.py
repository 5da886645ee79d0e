"""``sim-node`` and ``deploy`` as people run them: two processes, a free port, a policy that has learned nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bridge_server import wait_until
from commands import INSTRUCTION, Command, patient_contract, untrained_checkpoint
from rosbags.highlevel import AnyReader

from moe_robot.cli import main
from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.contract import load_contract

SCRIPT = Path(__file__).parents[2] / "scripts/deploy_ros.py"


@pytest.fixture(scope="module")
def contract(tmp_path_factory) -> Path:
    return patient_contract(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return untrained_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def simulated(command, contract) -> tuple[Command, str]:
    """A simulated robot, and its address."""
    node = command("sim-node", "--contract", contract, "--address", "127.0.0.1:0")
    return node, node.says(r"lives at (ws://\S+)")[1]


def test_a_person_enables_stops_and_ends_a_policy_that_drives_the_simulated_robot(
    command, simulated, contract, checkpoint, tmp_path
):
    node, address = simulated
    deploy = command(
        "deploy", checkpoint, "--contract", contract, "--instruction", INSTRUCTION, "--address", address, "--live",
        "--json", "--record", tmp_path / "run.mcap",
    )  # fmt: skip
    watcher = RosbridgeRobot(load_contract(contract), address)
    watcher.start()
    try:
        deploy.says("disabled.*ready to be enabled")
        wait_until(lambda: watcher.latest().joints, "joint states")
        before = watcher.latest().joints[-1].positions
        deploy.type("e\n")
        deploy.says("enabled, live")
        wait_until(lambda: np.abs(watcher.latest().joints[-1].positions - before).max() > 0.02, "motion")
        deploy.type("\n")
        deploy.says("held.*operator: stop was pressed")
        deploy.type("e\n")
        deploy.says("enabled, live")
        assert deploy.end(signal.SIGINT) == 130
        wait_until(lambda: np.abs(watcher.latest().joints[-1].velocities).max() < 0.01, "standstill")
    finally:
        watcher.stop()
    summary = deploy.summary()
    assert summary["live"]
    assert summary["enablings"] == 2
    assert summary["commands"]["sent"] == summary["commands"]["passed"] > 0
    assert [hold["message"].split(";")[0] for hold in summary["holds"]] == [
        "operator: stop was pressed",
        "operator: the program ends",
    ]
    assert summary["timings"]["observation to answer"]["n"] > 0
    assert summary["recorded"]["complete"]
    with AnyReader([tmp_path / "run.mcap"]) as bag:
        recorded = {topic: info.msgcount for topic, info in bag.topics.items()}
    assert recorded["/moe_robot/sent/forward_position_controller/commands"] == summary["commands"]["sent"] + 2  # holds
    assert sum(recorded.values()) == summary["recorded"]["messages"]
    assert "moe-robot deploy: interrupted; the robot was told to hold" in deploy.lines
    assert node.process.poll() is None
    assert node.end(signal.SIGINT) == 130
    assert node.lines[-1] == "moe-robot sim-node: interrupted; the simulated robot is gone"


def test_a_robot_that_dies_is_held_and_the_program_ends_when_it_is_told(command, simulated, contract, checkpoint):
    node, address = simulated
    deploy = command(
        "deploy", checkpoint, "--contract", contract, "--instruction", INSTRUCTION, "--address", address, "--live",
        "--enable-at-start", "--json",
    )  # fmt: skip
    deploy.process.stdin.close()
    deploy.says("enabled, live")
    node.process.kill()
    assert "no connection" in deploy.says("held.*freshness").string
    assert deploy.end(signal.SIGTERM) == 130
    (hold,) = deploy.summary()["holds"]
    assert hold["rule"] == "freshness"
    assert deploy.summary()["state"] == "held"


def test_a_contract_that_does_not_fit_the_policy_ends_it_before_anything_is_connected(
    command, contract, checkpoint, tmp_path
):
    other = tmp_path / "other.yaml"
    other.write_text(contract.read_text(encoding="utf-8").replace("hand.dyaw", "hand.turn"), encoding="utf-8")
    deploy = command("deploy", checkpoint, "--contract", other, "--instruction", INSTRUCTION)
    assert deploy.wait() == 1
    (line,) = deploy.lines
    assert line == (
        "moe-robot deploy: the contract of pitstop does not fit the policy: action 3 is 'hand.turn', expected "
        "'hand.dyaw'; correct the contract"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--enable-at-start", "--address", "wss://robot.lab:9090"), "for a simulated robot on this machine"),
        (("--address", "ws://10.0.0.7:9090"), "neither encrypted nor on this machine"),
        (("--contract", "pitstob"), "did you mean pitstop?"),
        (("--seconds", "0"), "expected more than 0"),
        (("--join", "0"), "expected 1 or more control steps"),
        (("--join", "3", "--blend", "0.1"), "and no --blend"),
        (("--transport", "rclpy", "--address", "ws://127.0.0.1:9090"), "leave --address out"),
        (("--transport", "rclpy"), "this Python has no ROS 2"),
        (("--transport", "sim", "--address", "ws://127.0.0.1:9090"), "leave --address and --lockstep out"),
    ],
)
def test_what_cannot_be_is_refused_at_once(checkpoint, capsys, arguments, complaint):
    given = ["deploy", str(checkpoint), "--contract", "pitstop", "--instruction", INSTRUCTION, "--live", *arguments]
    assert main(given) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\x1b[31m\x07\x00" * 2000, "pick " * 2000, "  ", "pick up\nthe cube"])
def test_an_instruction_that_is_no_printable_line_is_refused_and_not_repeated(checkpoint, capsys, text):
    assert main(["deploy", str(checkpoint), "--contract", "pitstop", "--instruction", text]) == 1
    said = capsys.readouterr().err
    assert "expected one printable line of up to 500 characters" in said
    assert len(said) < 200
    assert said.strip("\n").isprintable()


def test_a_world_that_cannot_stand_in_for_a_robot_is_refused(capsys):
    assert main(["sim-node", "--address", "0.0.0.0:9090"]) == 1
    assert main(["sim-node", "--task", "demo"]) == 1
    assert main(["sim-node", "--episodes", "0"]) == 1
    said = capsys.readouterr().err
    for complaint in ("allow it with --expose", "demo are 5 tasks: expected one", "--episodes 0: expected 1 or more"):
        assert complaint in said


def test_the_short_program_says_what_it_needs():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("checkpoint", "contract", "instruction", "--live", "--record"):
        assert word in done.stdout


def test_the_short_program_drives_the_simulated_robot_and_records(command, simulated, contract, checkpoint, tmp_path):
    _, address = simulated
    here = tmp_path / "here.yaml"
    here.write_text(contract.read_text(encoding="utf-8").replace("ws://127.0.0.1:9090", address), encoding="utf-8")
    run = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    program = command(checkpoint, here, INSTRUCTION, "--live", "--record", tmp_path / "run.mcap", code=run)
    program.says("ready to be enabled")
    program.type("e\n")
    program.says("enabled, live")
    program.type("q")
    assert program.wait() == 0
    assert any(line.startswith("recorded") and "dropped" not in line for line in program.lines)
    with AnyReader([tmp_path / "run.mcap"]) as bag:
        held = "/moe_robot/sent/forward_position_controller/commands"  # when it ended
        assert {"/diagnostics", "/front/image_raw/compressed", "/joint_states", held} <= set(bag.topics)
