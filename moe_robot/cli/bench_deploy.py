"""``moe-robot bench deploy``: from picture to command over rosbridge, the gate, the loop's jitter, and outages.

Clients take turns, window by window, so that what disturbs one disturbs all. No network of a policy runs.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.cli.bench_deploy_robot import RATE_HZ, bench_contract, position_of, serve
from moe_robot.types import Observation, UserError

OURS, PEER = "moe_robot, CBOR", "roslibpy, JSON"
GATE_STEPS = 2000


def measure(seconds: float, repeats: int, peer: Path | None, outage: bool = True) -> dict[str, Any]:
    """Plain data.

    Args:
        seconds: of each window.
        repeats: windows of each client.
        peer: a Python that has roslibpy; None leaves it out.
        outage: also count the commands that come late after an outage, which takes 15 s per client.

    Raises:
        UserError: ``peer`` cannot be run, or has no roslibpy.
    """
    clients = {OURS: [sys.executable, "-m", "moe_robot.cli.bench_deploy_client"]}
    if peer is not None:
        clients[PEER] = [str(peer), "-I", str(Path(__file__).with_name("bench_deploy_roslibpy.py"))]
    result: dict[str, Any] = {"size": "640x480 JPEG", "rate_hz": RATE_HZ, "load_before": os.getloadavg()[0]}
    result["gate"] = gate()
    result["loop"] = jitter(seconds)
    windows: dict[str, list[dict[str, Any]]] = {name: [] for name in clients}
    with _robot() as (pipe, address):
        for _ in range(repeats):
            for name, command in clients.items():
                windows[name].append(_window(command, address, pipe, seconds))
        result["picture to command"] = {name: _summary(rows) for name, rows in windows.items()}
        if outage:
            result["commands after an outage"] = {
                name: _outage(command, address, pipe) for name, command in clients.items()
            }
    result["load_after"] = os.getloadavg()[0]
    return result


def gate() -> dict[str, float]:
    """Microseconds of one judgement with forward kinematics on, of a command that passes."""
    from moe_robot.deploy.robot_io import Image, JointCommand, JointState
    from moe_robot.deploy.safety import SafetyGate
    from moe_robot.deploy.sync import Sensed

    contract = bench_contract()
    judge, pixels = SafetyGate(contract), np.zeros((480, 640, 3), np.uint8)
    walls: list[float] = []
    spent = 0.0
    for i in range(GATE_STEPS):
        now = i / RATE_HZ
        state = JointState(position_of(i % 400), np.zeros(7), 0.08, now, now)
        sensed = Sensed({"front": Image(pixels, now, now)}, state, state, 0)
        if i == 0:
            judge.enable(sensed, now, live=True)
        command = JointCommand(position_of(i % 400)[None] + 1e-4, 0.04, now)
        cpu, wall = time.process_time(), time.perf_counter()
        decision = judge.check(command, sensed, now)
        walls.append(time.perf_counter() - wall)
        spent += time.process_time() - cpu
        assert decision.send is not None, decision.failure
    return {"cpu_us": 1e6 * spent / GATE_STEPS} | _percentiles(walls, 1e6, "us")


def jitter(seconds: float) -> dict[str, float]:
    """How late the steps of the loop begin at 30 Hz, milliseconds: our bridge, and a policy in a process of its own."""
    from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
    from moe_robot.deploy.guard import GuardedRobot
    from moe_robot.deploy.inference import PolicyProcess
    from moe_robot.deploy.loop import ControlLoop
    from moe_robot.processes import workers_are_born

    contract = bench_contract()
    with _robot() as (pipe, address):
        robot, policy = GuardedRobot(RosbridgeRobot(contract, address), contract), PolicyProcess(still)
        loop = ControlLoop(robot, contract, policy, "stay", None)
        with workers_are_born():
            policy.start()
        try:
            robot.start()
            while not policy.ready:
                time.sleep(0.05)
            pipe.send(("window", seconds))
            end = time.monotonic() + seconds
            loop.run(lambda: time.monotonic() >= end)
            pipe.recv()
        finally:
            robot.stop()
            policy.stop()
    late = loop.timings.summary()["late"]
    return {"steps": late["n"]} | {f"{key}_ms": 1e3 * late[key] for key in ("p50", "p99", "max")}


def still() -> Any:
    """A policy that wants to stay where it is."""

    def act(observation: Observation) -> np.ndarray:
        return np.zeros((8, 5))

    return act


@contextmanager
def _robot() -> Iterator[tuple[Any, str]]:
    """The robot's process: the pipe to it and its address."""
    pipe, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield pipe, f"ws://127.0.0.1:{pipe.recv()}"
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
            raise UserError(f"{self._python} did not answer: is roslibpy installed there?")

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


def _window(command: list[str], address: str, pipe: Any, seconds: float) -> dict[str, Any]:
    client = _Client(command, address)
    try:
        pipe.send(("window", 1.0))  # to warm up
        pipe.recv()
        pipe.send(("window", seconds))
        row = pipe.recv()
        return row | {"cpu_seconds": client.end()}
    finally:
        client.process.kill()


def _outage(command: list[str], address: str, pipe: Any) -> int:
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


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    late = [seconds for row in rows for seconds in row["seconds"]]
    frames, answered = (sum(row[key] for row in rows) for key in ("frames", "answered"))
    cpu = sum(row["cpu_seconds"] for row in rows) / len(rows)
    return {"frames": frames, "answered": answered, "client_cpu_s_per_window": cpu} | _percentiles(late, 1e3, "ms")


def _percentiles(seconds: list[float], scale: float, unit: str) -> dict[str, float]:
    if not seconds:
        return {}
    p50, p99 = np.percentile(seconds, [50, 99])
    return {f"p50_{unit}": scale * p50, f"p99_{unit}": scale * p99, f"max_{unit}": scale * max(seconds)}


def table_lines(result: dict[str, Any], key: str = "") -> list[str]:
    """``a.b.c  value`` for each number, for people."""
    lines: list[str] = []
    for name, value in result.items():
        where = f"{key} · {name}" if key else name
        if isinstance(value, dict):
            lines += table_lines(value, where)
        else:
            lines.append(f"{where:<58}  {value:,.4g}" if isinstance(value, float) else f"{where:<58}  {value}")
    return lines
