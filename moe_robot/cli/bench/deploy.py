"""``moe-robot bench deploy``: from picture to command over rosbridge and ROS 2, the gate, the loop's jitter, outages.

Clients take turns, window by window, so that what disturbs one disturbs all. No network of a policy runs.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.cli.bench.deploy_robot import NATIVE, RATE_HZ, bench_contract, position_of
from moe_robot.cli.bench.deploy_windows import outage, robot, window
from moe_robot.deploy.backends.ros2_messages import available
from moe_robot.types import Observation

OURS, PEER = "moe_robot, CBOR", "roslibpy, JSON"
OURS_NATIVE, PLAIN = "moe_robot, rclpy", "a plain rclpy loop"
GATE_STEPS = 2000


def measure(seconds: float, repeats: int, peer: Path | None, outages: bool = True) -> dict[str, Any]:
    """Plain data. Over ROS 2 itself as well where this Python has rclpy.

    Args:
        seconds: of each window.
        repeats: windows of each client.
        peer: a Python that has roslibpy; None leaves it out.
        outages: also count the commands that come late after an outage, which takes 15 s per client.

    Raises:
        UserError: ``peer`` cannot be run, or has no roslibpy.
    """
    ways = (False, True) if available() else (False,)
    here = {"ROS_DOMAIN_ID": str(1 + os.getpid() % 100), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    os.environ.update(here)  # of all processes from now on: nobody else's robot is driven
    result: dict[str, Any] = {"size": "640x480 JPEG", "rate_hz": RATE_HZ, "load_before": os.getloadavg()[0]}
    if len(ways) == 1:
        result["ROS 2"] = "left out: this Python has no rclpy"
    result["gate"] = gate()
    result["loop"] = {OURS_NATIVE if native else OURS: jitter(seconds, native) for native in ways}
    with ExitStack() as stack:
        robots = {native: stack.enter_context(robot(native)) for native in ways}
        clients = [(name, command, robots[native]) for native in ways for name, command in _clients(native, peer)]
        windows: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in clients}
        for _ in range(repeats):
            for name, command, (pipe, address) in clients:
                windows[name].append(window(command, address, pipe, seconds))
        result["picture to command"] = {name: _summary(rows) for name, rows in windows.items()}
        if outages:
            result["commands after an outage"] = {
                name: outage(command, address, pipe) for name, command, (pipe, address) in clients
            }
    result["load_after"] = os.getloadavg()[0]
    return result


def _clients(native: bool, peer: Path | None) -> list[tuple[str, list[str]]]:
    """Name and command line of each client over ROS 2 itself, or over a bridge."""
    mine, folder = [sys.executable, "-m", "moe_robot.cli.bench.deploy_client"], Path(__file__).parent
    if native:
        return [(OURS_NATIVE, mine), (PLAIN, [sys.executable, "-m", "moe_robot.cli.bench.deploy_rclpy"])]
    theirs = [(PEER, [str(peer), "-I", str(folder / "deploy_roslibpy.py")])] if peer else []
    return [(OURS, mine), *theirs]


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


def jitter(seconds: float, native: bool) -> dict[str, float]:
    """How late the steps of the loop begin at 30 Hz, milliseconds, with a policy in a process of its own."""
    from moe_robot.deploy.backends.ros2 import Ros2Robot
    from moe_robot.deploy.backends.rosbridge import RosbridgeRobot
    from moe_robot.deploy.guard import GuardedRobot
    from moe_robot.deploy.inference import PolicyProcess
    from moe_robot.deploy.loop import ControlLoop
    from moe_robot.processes import workers_are_born

    contract = bench_contract()
    with robot(native) as (pipe, address):
        io = Ros2Robot(contract) if address == NATIVE else RosbridgeRobot(contract, address)
        guarded, policy = GuardedRobot(io, contract), PolicyProcess(still)
        loop = ControlLoop(guarded, contract, policy, "stay", None)
        with workers_are_born():
            policy.start()
        try:
            guarded.start()
            while not policy.ready:
                time.sleep(0.05)
            pipe.send(("window", seconds))
            end = time.monotonic() + seconds
            loop.run(lambda: time.monotonic() >= end)
            pipe.recv()
        finally:
            guarded.stop()
            policy.stop()
    late = loop.timings.summary()["late"]
    return {"steps": late["n"]} | {f"{key}_ms": 1e3 * late[key] for key in ("p50", "p99", "max")}


def still() -> Any:
    """A policy that wants to stay where it is."""

    def act(observation: Observation) -> np.ndarray:
        return np.zeros((8, 5))

    return act


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
