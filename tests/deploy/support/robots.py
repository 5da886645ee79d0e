"""Robots for the tests of serving: what they see, how they ask, and the server that they ask."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from bridge_server import wait_until
from commands import Command


class ServedBy:
    """A running ``moe-robot serve``."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.address = command.says(r"serving .* at (wss?://\S+):").group(1)
        self.port = int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.command.process.pid

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.address.replace("ws", "http", 1) + path, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The value of a series, with its labels as Prometheus writes them."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"moe_robot_{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def is_well(self) -> bool:
        return self.get("/healthz") == (200, "OK\n")

    def policy_pid(self) -> int:
        """Of the process that the policy runs in."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        named = [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
        return named[-1]

    def resident(self) -> int:
        """Bytes of memory of the server's process."""
        (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return 1024 * int(kib)


def seen_by(robot: int, step: int = 0, openpi: bool = False) -> dict:
    """An observation that no other robot has, nor this one at another step."""
    rng = np.random.default_rng([robot, step])
    picture = rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)
    state = np.array([robot, step, rng.normal()], dtype=np.float32)
    task = "go" + "o" * (robot % 7)
    keys = ("observation/image", "observation/state", "prompt") if openpi else (
        "observation.images.front", "observation.state", "task")  # fmt: skip
    return dict(zip(keys, (picture, state, task), strict=True))


def gone(pid: int) -> bool:
    """Whether the process has ended; one that waits to be fetched by its parent has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


__all__ = ["ServedBy", "gone", "seen_by", "wait_until"]
