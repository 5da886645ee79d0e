"""``moe-robot bench train``: what several processes and saved states cost a training run.

Processes of one thread each train together, then as many runs by themselves side by side, in turn; and as many by
themselves that only wait for each other after every step, which tells what being in step costs on this machine,
whatever is sent: processes that do the same at the same moment want the same memory and caches. Likewise one run that
saves its state every few seconds and one that never does. Ratios of medians are what holds on a disturbed machine.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_robot.processes import workers_are_born
from moe_robot.types import UserError

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

    from moe_robot.training.config import TrainConfig

BATCH = 64
"""Samples per step and process: what `train` takes by default."""
WARM_UP = 3
"""Steps that are not counted."""
SIZE = 96
NEVER = 1e9


@dataclasses.dataclass(frozen=True)
class Spent:
    """What one process spent on its steps after the warm-up.

    Attributes:
        steps: how many they were.
        wall: seconds.
        cpu: seconds of processor time, of all threads.
    """

    steps: int
    wall: float
    cpu: float


class Tick(NamedTuple):
    """The end of a step: its number, the time, and the processor time that the process has spent, both in seconds."""

    step: int
    wall: float
    cpu: float


def measure(preset: str, processes: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Samples per second together and side by side, and the share of time that a state once a minute costs.

    Args:
        preset: of the policy.
        processes: that train together.
        seconds: of each run, after its processes have started.
        repeats: runs of each kind.
    """
    if processes < 2:
        raise UserError(f"--processes {processes}: expected at least 2, to compare with as many by themselves")
    from moe_robot.training.config import TrainConfig

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demonstrations(folder / "data")
        alone = TrainConfig(
            folder / "data", folder, preset, minutes=seconds / 60, batch_size=BATCH, device="cpu", save_every=NEVER
        )
        together = dataclasses.replace(alone, batch_size=BATCH * processes)
        saving = dataclasses.replace(alone, save_every=seconds / 4)
        rates: dict[str, list[float]] = {"together": [], "in step": [], "apart": []}
        work: dict[str, list[float]] = {"together": [], "in step": [], "apart": []}
        wall: dict[str, list[float]] = {"saving": [], "not": []}
        cpu: dict[str, list[float]] = {"saving": [], "not": []}
        for _ in range(repeats):
            team = _run([(together, _team(rank, processes)) for rank in range(processes)], folder)
            rates["together"].append(together.batch_size * team[0].steps / team[0].wall)
            in_step = _run([(alone, {})] * processes, folder, in_step=True)
            apart = _run([(alone, {})] * processes, folder)
            for kind, members in (("in step", in_step), ("apart", apart)):
                rates[kind].append(sum(BATCH * spent.steps / spent.wall for spent in members))
            for kind, members in (("together", team), ("in step", in_step), ("apart", apart)):
                work[kind].append(statistics.mean(BATCH * spent.steps / spent.cpu for spent in members))
            for kind, config in (("saving", saving), ("not", alone)):
                (spent,) = _run([(config, {})], folder)
                wall[kind].append(spent.wall / spent.steps)
                cpu[kind].append(spent.cpu / spent.steps)
    return {
        "preset": preset,
        "processes": f"{processes} of one thread, on {len(os.sched_getaffinity(0))} cores",
        "samples_per_second_together": statistics.median(rates["together"]),
        "samples_per_second_side_by_side_in_step": statistics.median(rates["in step"]),
        "samples_per_second_side_by_side": statistics.median(rates["apart"]),
        "together_over_side_by_side": _ratio(rates, "together", "apart"),
        "together_over_side_by_side_per_cpu_second": _ratio(work, "together", "apart"),
        "in_step_over_side_by_side": _ratio(rates, "in step", "apart"),
        "together_over_in_step": _ratio(rates, "together", "in step"),
        "state_once_a_minute_wall_share": _share(wall, seconds / 4),
        "state_once_a_minute_cpu_share": _share(cpu, seconds / 4),
        "batch_per_process": BATCH,
        "load_average": os.getloadavg()[0],
    }


def write_demonstrations(folder: Path, episodes: int = 12, length: int = 25) -> None:
    """Two cameras of noise, an arm of seven joints with a gripper, two sentences: the sizes of a real data set."""
    import numpy as np

    from moe_robot.data.record import EpisodeBuilder
    from moe_robot.data.store import DatasetWriter
    from moe_robot.types import Features

    joints = tuple(f"joint{i}.pos" for i in range(7))
    cameras = {"front": (SIZE, SIZE), "wrist": (SIZE, SIZE)}
    features = Features(cameras, (*joints, "gripper.opening"), (*joints, "gripper"), 10)
    writer = DatasetWriter(folder, features, {})
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        builder = EpisodeBuilder(features)
        for _ in range(length):
            images = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in cameras.items()}
            builder.add(images, rng.normal(size=8).astype(np.float32), rng.normal(size=8).astype(np.float32))
        writer.append(builder.finish(("push the red button", "pick the green cube")[episode % 2], {"seed": episode}))
    writer.commit()


def _ratio(of: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    return statistics.median(of[one]) / statistics.median(of[other])


def _share(per_step: Mapping[str, Sequence[float]], period: float) -> float:
    """Of the time, when the period between states is a minute: what steps cost more when states are saved."""
    saving, never = (statistics.median(per_step[kind]) for kind in ("saving", "not"))
    return (1 - never / saving) * period / 60


def _team(rank: int, size: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def _run(members: Sequence[tuple[TrainConfig, Mapping[str, str]]], folder: Path, in_step: bool = False) -> list[Spent]:
    """Start all members at once; what each spent while all were at it, in their order.

    They wait for each other at the end of the warm-up, and with ``in_step`` after every step: what one does while
    others load or have ended is quicker, and is not counted.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(members))
    results: Queue[tuple[int, list[Tick] | str]] = context.Queue()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    with tempfile.TemporaryDirectory(dir=folder) as outs, workers_are_born():
        for number, (config, place) in enumerate(members):
            out = Path(outs) / ("together" if place else str(number))
            config = dataclasses.replace(config, out=out)
            arguments = (number, config, {**address, **place}, results, barrier, in_step)
            processes.append(context.Process(target=_member, args=arguments))
            processes[-1].start()
        found = dict(results.get() for _ in members)
        for process in processes:
            process.join()
    ticks: list[list[Tick]] = []
    for number in range(len(members)):
        said = found[number]
        if isinstance(said, str):
            raise UserError(said)
        ticks.append(said[WARM_UP:])
    if not all(ticks):
        raise UserError("no step after the warm-up: give more --seconds")
    return _spent(ticks)


def _spent(ticks: Sequence[Sequence[Tick]]) -> list[Spent]:
    """What each spent until the first of them ended."""
    end = min(of[-1].wall for of in ticks)
    spent = []
    for of in ticks:
        first, last = of[0], max((tick for tick in of if tick.wall <= end), key=lambda tick: tick.wall, default=of[0])
        if last.step == first.step:
            raise UserError("no step after the warm-up: give more --seconds")
        spent.append(Spent(last.step - first.step, last.wall - first.wall, last.cpu - first.cpu))
    return spent


def _member(
    number: int, config: TrainConfig, environment: Mapping[str, str], results: Queue[Any], barrier: Barrier,
    in_step: bool,
) -> None:  # fmt: skip
    os.environ.update(environment)
    from moe_robot.training.train import Progress, train

    ticks: list[Tick] = []

    def note(progress: Progress) -> None:
        if in_step or len(ticks) == WARM_UP:
            with suppress(threading.BrokenBarrierError):  # another has ended, or has failed and says so itself
                barrier.wait()
        ticks.append(Tick(progress.step, time.monotonic(), time.process_time()))

    try:
        train(config, note)
        results.put((number, ticks))
    except BaseException as error:
        results.put((number, f"a run that was to be measured failed: {error}"))
    finally:
        barrier.abort()
