"""One client of ``moe-robot bench deploy`` at work: the robot's process, the client's, a window of time, an outage."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_robot.cli.bench.deploy_robot import NATIVE, serve
from moe_robot.types import UserError


@contextmanager
def robot(native: bool = False) -> Iterator[tuple[Any, str]]:
    """The robot's process, behind a bridge of ours or on ROS 2 itself: the pipe to it and its address."""
    pipe, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, native), daemon=True)
    process.start()
    theirs.close()
    try:
        port = pipe.recv()
        yield pipe, NATIVE if native else f"ws://127.0.0.1:{port}"
        pipe.send(("end",))
    finally:
        process.join(5)
        process.kill()


class _Client:
    """A client in a process of its own, and what it says."""

    def __init__(self, command: list[str], address: str) -> None:
        self._python = command[0]
        try:
            self.process = subprocess.Popen(
                [*command, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        except OSError as error:
            raise UserError(f"{self._python} cannot be run ({error.strerror}): give --peer a Python") from error
        self.expect("ready")

    def say(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def expect(self, word: str) -> None:
        if self.hear() != word:
            self.process.kill()
            raise UserError(f"{self._python} did not answer: is roslibpy, or rclpy for ROS 2, installed there?")

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> float:
        """Its seconds of processor time."""
        self.say("end")
        spent = float(self.hear() or "nan")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return spent


def window(command: list[str], address: str, pipe: Any, seconds: float) -> dict[str, Any]:
    """Frames for so long: how many, how many were answered, after how many seconds each, and the client's CPU time."""
    client = _Client(command, address)
    try:
        pipe.send(("window", 1.0))  # to warm up
        pipe.recv()
        pipe.send(("window", seconds))
        row = pipe.recv()
        return row | {"cpu_seconds": client.end()}
    finally:
        client.process.kill()


def outage(command: list[str], address: str, pipe: Any) -> int:
    """How many commands of the outage come when it is over."""
    client = _Client(command, address)
    try:
        pipe.send(("window", 1.0))
        pipe.recv()
        pipe.send(("outage",))
        pipe.recv()
        client.say("outage")
        client.expect("sent")
        came = pipe.recv()
        client.end()
        return came
    finally:
        client.process.kill()
