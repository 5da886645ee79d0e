"""``sim-node`` and ``deploy`` as people run them: two processes, a free port, a policy that has learned nothing."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from bridge_server import wait_until
from rosbags.highlevel import AnyReader

from moe_policies.policy import MultimodalPolicy
from moe_robot.cli import main
from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
from moe_robot.deploy.contract import SHIPPED, load_contract
from moe_robot.types import FeatureStatistics

STARTING_S = 120.0
"""A process that imports torch may take so long on a busy machine."""
INSTRUCTION = "pick up the red cube"
SMALL = {"width": 16, "hidden": 16, "layers": 2, "stem_channels": 8, "patches": 2, "glimpses": 2}
LIMITS = {"heartbeat_s: 0.5": 20, "max_command_age_s: 1.0": 20, "max_skew_s: 0.1": 20}
"""Those of the shipped contract that a busy machine might break."""


@pytest.fixture(scope="module")
def contract(tmp_path_factory) -> Path:
    """The shipped contract with so much patience that only what the tests do stops the robot."""
    text = (SHIPPED / "pitstop.yaml").read_text(encoding="utf-8")
    for line, patience in LIMITS.items():
        assert line in text
        text = text.replace(line, f"{line.split(':')[0]}: {patience}.0")
    path = tmp_path_factory.mktemp("robot") / "patient.yaml"
    path.write_text(re.sub(r"max_age_s: 0\.\d+", "max_age_s: 2.0", text), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    features = load_contract("pitstop").features()
    sizes = {f"observation.images.{camera}": 3 for camera in features.cameras}
    sizes |= {"observation.state": len(features.state_names), "action": len(features.action_names)}
    statistics = {
        key: FeatureStatistics(np.full(n, 0.05), np.full(n, 0.02), np.zeros(n), np.ones(n), 1)
        for key, n in sizes.items()
    }
    policy = MultimodalPolicy.from_preset("moe", features, statistics, [INSTRUCTION, "press the button"], **SMALL)
    policy.save_pretrained(folder := tmp_path_factory.mktemp("policy"))
    return folder


class Command:
    """``moe-robot`` in a process of its own; what it says is collected line by line."""

    def __init__(self, *arguments: object) -> None:
        code = "import sys; from moe_robot.cli import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.readers = [
            threading.Thread(target=self._read, args=[pipe]) for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe) -> None:
        for line in pipe:
            self.lines.append(line.rstrip("\n"))

    def says(self, pattern: str) -> re.Match:
        """Wait for the first line after the one before."""
        found: list[re.Match] = []
        over = lambda: self._find(pattern, found) or self.process.poll() is not None  # noqa: E731
        wait_until(over, repr(pattern), STARTING_S)
        assert found or self._find(pattern, found), "\n".join(self.lines)
        return found[0]

    def _find(self, pattern: str, found: list) -> bool:
        for i, line in enumerate(list(self.lines)):
            if i >= getattr(self, "seen", 0) and (match := re.search(pattern, line)):
                found.append(match)
                self.seen = i + 1
                return True
        return False

    def type(self, text: str) -> None:
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(timeout=STARTING_S)
        for reader in self.readers:
            reader.join()
        return status

    def summary(self) -> dict:
        begin = self.lines.index("{")
        return json.loads("\n".join(self.lines[begin : self.lines.index("}") + 1]))


@pytest.fixture
def command():
    """Starts commands, and ends those that are left."""
    started = []

    def start(*arguments) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.wait()
        for pipe in (one.process.stdin, one.process.stdout, one.process.stderr):
            pipe.close()


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
    assert deploy.lines[-1] == "moe-robot deploy: interrupted; the robot was told to hold"
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
    script = Path(__file__).parents[2] / "scripts/deploy_ros.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("checkpoint", "contract", "instruction", "--live"):
        assert word in done.stdout
