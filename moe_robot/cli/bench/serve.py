"""``moe-robot bench serve``: throughput against latency of the policy server, as the fleet and the batch window grow.

Two servers run at once, of the mixture and of the dense network of the same FLOPs, both untrained: weights change no
time. All fleets and ways of batching take turns, and each repeat goes through all of them once, so what disturbs the
machine for long disturbs all of them.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from moe_robot.cli.bench.serve_fleet import Drive, drive
from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Observation, UserError

PRESETS, WHOLE = ("moe", "dense-active"), "dense-total"
BATCHES = (1, 16, 64)
"""Of the bare network."""
ONE_BY_ONE = "one by one"
JSON, PICTURE = "serve.json", "serve.png"


@dataclass(frozen=True)
class Way:
    """How a server batches: ``largest`` 1 answers one by one."""

    name: str
    window_s: float
    largest: int


def ways(windows_ms: Sequence[float], most: int) -> list[Way]:
    """One by one, then every window."""
    return [Way(ONE_BY_ONE, 0.0, 1), *(Way(f"window {ms:g} ms", ms / 1e3, most) for ms in windows_ms)]


def check(robots: Sequence[int], windows_ms: Sequence[float], rate: float) -> None:
    """Nothing if these can be measured.

    Raises:
        UserError: they cannot.
    """
    if not robots or min(robots) < 1 or rate <= 0 or not windows_ms or min(windows_ms) < 0:
        raise UserError("--robots, --windows and --rate: expected positive numbers, for example --robots 1 16 64")


def measure(
    env: Any,
    robots: Sequence[int],
    windows_ms: Sequence[float],
    rate: float,
    seconds: float,
    repeats: int,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """All numbers. Closes ``env``.

    Args:
        env: whose observations are sent.
        robots: sizes of the fleet.
        windows_ms: batch windows.
        rate: of each robot, Hz.
        seconds: of each measurement, ``repeats`` of which are made.
        repeats: see there; medians are told.
        say: told each line of the table as soon as it is there.
    """
    import torch

    from moe_robot.cli.policy_speed import any_statistics, observations_of
    from moe_robot.deploy.serving.wire import pack
    from moe_robot.evaluation.report import machine
    from moe_robot.evaluation.results import versions
    from moe_robot.registry import environment_features, presets

    try:
        features, observations = environment_features(env), observations_of(env, 4)
    finally:
        env.close()
    torch.set_num_threads(1)
    sentences = [observation.task or "" for observation in observations]
    policies = {
        name: presets()[name].from_preset(name, features, any_statistics(features), sentences)
        for name in (*PRESETS, WHOLE)
    }
    frames = [pack(_keyed(observation)) for observation in observations]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for name in PRESETS:
            policies[name].save_pretrained(Path(folder) / name)
        network = _network(policies, observations, seconds)
        for line in network_lines(network):
            say(line)
        rows = asyncio.run(
            _sweep(Path(folder), robots, windows_ms, rate, seconds, repeats, frames, lambda row: say(line_of(row)))
        )
    return {
        "rows": rows,
        "network": network,
        "rate_hz": rate,
        "seconds": seconds,
        "repeats": repeats,
        "frame_bytes": len(frames[0]),
        "over_one_by_one": _gains(rows),
        "machine": machine("cpu", 1),
        "versions": versions(),
        "load": {"start": round(load, 2), "end": round(os.getloadavg()[0], 2)},
    }


def write(result: Mapping[str, Any], out: Path) -> None:
    """``serve.json`` and ``serve.png`` in ``out``."""
    from moe_robot.cli.bench.serve_plot import plot
    from moe_robot.evaluation.journal import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / JSON, json.dumps(result, indent=1, allow_nan=False) + "\n")
    plot(result, out / PICTURE)


def line_of(row: Mapping[str, Any]) -> str:
    """One row, for people."""
    if row["p50_ms"] is None:
        return (
            f"{row['preset']:<12}  {row['way']:<12}  {row['robots']:>3} robots  no answer in time: give more --seconds"
        )
    return (
        f"{row['preset']:<12}  {row['way']:<12}  {row['robots']:>3} robots  {row['per_second']:7.1f} answers/s  "
        f"p50 {row['p50_ms']:7.1f} ms  p95 {row['p95_ms']:7.1f} ms  batch {row['batch']:5.1f}  "
        f"{row['policy_cpu_ms']:6.2f} CPU ms an answer"
    )


def network_lines(network: Mapping[str, Any]) -> list[str]:
    """The bare networks, for people."""
    lines = []
    for name, of in network.items():
        times = ", ".join(f"{ms:.2f} at batch {batch}" for batch, ms in of["cpu_ms_per_plan"].items())
        lines.append(
            f"{name:<12}  {of['total_parameters'] / 1e6:.2f} M parameters, {of['active_parameters'] / 1e6:.2f} M "
            f"active, {of['mflop_per_plan']:.1f} MFLOP a plan; CPU ms a plan: {times}"
        )
    return lines


async def _sweep(
    folder: Path, robots: Sequence[int], windows_ms: Sequence[float], rate: float, seconds: float, repeats: int,
    frames: Sequence[bytes], report: Callable[[dict[str, Any]], object],
) -> list[dict[str, Any]]:  # fmt: skip
    from moe_robot.deploy.serving.server import PolicyServer
    from moe_robot.deploy.serving.settings import Settings

    servers, rows = {}, []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fleet:
        try:
            for name in PRESETS:
                settings = Settings(folder / name, port=0, largest=max(robots), threads=1, robots=2 * max(robots))
                servers[name] = PolicyServer(settings, lambda line: None)
                await servers[name].start()
            kinds = ways(windows_ms, max(robots))
            turns = [(count, way, name) for count in robots for way in kinds for name in PRESETS]
            found: dict[tuple[int, str, str], list[tuple[Drive, float]]] = {}
            for repeat in range(repeats):
                for count, way, name in turns:
                    drives = found.setdefault((count, way.name, name), [])
                    drives.append(await _one(servers[name], way, fleet, count, rate, seconds, frames))
                    if repeat == repeats - 1:
                        rows.append({"preset": name, "way": way.name, "robots": count, **_medians(drives)})
                        report(rows[-1])
        finally:
            for server in servers.values():
                await server.stop()
    return rows


async def _one(
    server: Any, way: Way, fleet: Executor, robots: int, rate: float, seconds: float, frames: Sequence[bytes]
) -> tuple[Drive, float]:
    """What the robots experienced, and the processor time of the policy's process per answer, ms."""
    server.batcher.window_s, server.batcher.largest = way.window_s, way.largest
    answers, cpu_s = server.metrics.requests.value(outcome="ok"), _cpu_s(server.keeper.worker.pid)
    drove = await asyncio.get_running_loop().run_in_executor(
        fleet, drive, server.address, robots, rate, seconds, list(frames)
    )
    answered = server.metrics.requests.value(outcome="ok") - answers
    return drove, 1e3 * (_cpu_s(server.keeper.worker.pid) - cpu_s) / max(answered, 1)


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _network(policies: Mapping[str, Any], observations: Sequence[Observation], seconds: float) -> dict[str, Any]:
    """Each policy's size, and the processor time of a plan at several batch sizes, all in turn."""
    from moe_robot.cli.policy_speed import alternate, batch_of

    told: dict[str, Any] = {}
    for name, policy in policies.items():
        cost = policy.eval().stack_experts().cost()
        told[name] = {
            "total_parameters": cost.total_parameters,
            "active_parameters": cost.active_parameters,
            "mflop_per_plan": cost.total_flops / 1e6,
            "cpu_ms_per_plan": {},
        }
    features = next(iter(policies.values())).features
    whole = batch_of(features, observations)
    for size in BATCHES:
        batch = {key: rows[:size] for key, rows in whole.items()}
        calls = {name: lambda p=policy, b=batch: p.predict_action_chunk(b) for name, policy in policies.items()}
        for name, times in alternate(calls, seconds).items():
            told[name]["cpu_ms_per_plan"][str(size)] = 1e3 * times.cpu / size
    return told


def _medians(drives: Sequence[tuple[Drive, float]]) -> dict[str, float | None]:
    told = {key: _middle([asdict(drove)[key] for drove, _ in drives]) for key in asdict(drives[0][0])}
    return told | {"policy_cpu_ms": median(cpu_ms for _, cpu_ms in drives)}


def _middle(values: Sequence[float | None]) -> float | None:
    """The median; None where a measurement had none."""
    there = [value for value in values if value is not None]
    return median(there) if len(there) == len(values) else None


def _gains(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Preset -> number of robots -> the best window's throughput over one by one; None where that had no answer."""
    gains: dict[str, dict[str, float | None]] = {}
    for preset in PRESETS:
        mine = [row for row in rows if row["preset"] == preset]
        for count in dict.fromkeys(row["robots"] for row in mine):
            rates = {row["way"]: row["per_second"] for row in mine if row["robots"] == count}
            alone = rates.pop(ONE_BY_ONE)
            gains.setdefault(preset, {})[str(count)] = max(rates.values()) / alone if alone else None
    return gains


def _keyed(observation: Observation) -> dict[str, Any]:
    images = {IMAGE_PREFIX + camera: frame for camera, frame in observation.images.items()}
    return {**images, STATE: observation.state, TASK: observation.task}
