"""Commands as people run them, each in a process of its own, and what they are given: a contract, a checkpoint."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bridge_server import wait_until

from moe_robot.deploy.contract import SHIPPED, load_contract
from moe_robot.types import FeatureStatistics

STARTING_S = 900.0
"""A process that imports torch may take so long on a busy machine."""
INSTRUCTION = "pick up the red cube"
SMALL = {"width": 16, "hidden": 16, "layers": 2, "stem_channels": 8, "patches": 2, "glimpses": 2}
LIMITS = {"heartbeat_s: 0.5": 20, "max_command_age_s: 1.0": 20, "max_skew_s: 0.15": 20}
"""Those of the shipped contract that a busy machine might break."""
MOE_ROBOT = "import sys; from moe_robot.cli import main; sys.exit(main())"


def patient_contract(folder: Path) -> Path:
    """The shipped contract with so much patience that only what the tests do stops the robot."""
    text = (SHIPPED / "pitstop.yaml").read_text(encoding="utf-8")
    for line, patience in LIMITS.items():
        assert line in text
        text = text.replace(line, f"{line.split(':')[0]}: {patience}.0")
    path = folder / "patient.yaml"
    path.write_text(re.sub(r"max_age_s: 0\.\d+", "max_age_s: 2.0", text), encoding="utf-8")
    return path


def untrained_checkpoint(folder: Path) -> Path:
    """A policy that has learned nothing."""
    from moe_policies.policy import MultimodalPolicy  # brings torch, which most who import this do without

    features = load_contract("pitstop").features()
    sizes = {f"observation.images.{camera}": 3 for camera in features.cameras}
    sizes |= {"observation.state": len(features.state_names), "action": len(features.action_names)}
    statistics = {
        key: FeatureStatistics(np.full(n, 0.05), np.full(n, 0.02), np.zeros(n), np.ones(n), 1)
        for key, n in sizes.items()
    }
    policy = MultimodalPolicy.from_preset("moe", features, statistics, [INSTRUCTION, "press the button"], **SMALL)
    policy.save_pretrained(folder)
    return folder


class Command:
    """``moe-robot``, or other code, in a process of its own; what it says is collected line by line."""

    def __init__(self, *arguments: object, code: str = MOE_ROBOT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.out: list[str] = []
        """Of these, what came to standard output: the other's lines may come between any two of them."""
        self.readers = [
            threading.Thread(target=self._read, args=[self.process.stdout, self.out]),
            threading.Thread(target=self._read, args=[self.process.stderr, []]),
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe, kept: list[str]) -> None:
        for line in pipe:
            kept.append(line.rstrip("\n"))
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
        begin = self.out.index("{")
        return json.loads("\n".join(self.out[begin : self.out.index("}") + 1]))


@contextmanager
def commands() -> Iterator:
    """Starts commands, and ends those that are left."""
    started = []

    def start(*arguments, **options) -> Command:
        started.append(Command(*arguments, **options))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            if one.process.poll() is None:
                one.process.kill()
            one.wait()
            for pipe in (one.process.stdin, one.process.stdout, one.process.stderr):
                pipe.close()
