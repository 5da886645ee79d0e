"""The robots of ``moe-robot bench serve``, in a process of their own: each asks once in a control period."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_robot.deploy.serving.wire import unpack

SETTLING_S = 0.3
"""At the beginning, that is not counted."""


@dataclass(frozen=True)
class Drive:
    """What robots experienced.

    Attributes:
        per_second: answers that all got together.
        p50_ms: from an observation, sent, to its answer, read; None when nobody had an answer in time, as below.
        p95_ms: likewise.
        batch: mean number of robots in the pass that answered.
    """

    per_second: float
    p50_ms: float | None
    p95_ms: float | None
    batch: float | None


def drive(address: str, robots: int, rate: float, seconds: float, frames: Sequence[bytes]) -> Drive:
    """Have ``robots`` ask for plans at ``rate`` Hz each for a while; one that got no answer in time asks when it has.

    Args:
        address: of the server.
        robots: how many.
        rate: of each, per second.
        seconds: to count for.
        frames: packed observations, taken in turn.
    """
    return asyncio.run(_drive(address, robots, rate, seconds, frames))


async def _drive(address: str, robots: int, rate: float, seconds: float, frames: Sequence[bytes]) -> Drive:
    from websockets.asyncio.client import connect

    latencies: list[float] = []
    batches: list[int] = []
    together = asyncio.Barrier(robots)

    async def live(robot: int) -> None:
        async with connect(address, compression=None, proxy=None, max_size=None, open_timeout=60) as connection:
            await connection.recv()
            await together.wait()
            begin = time.perf_counter()
            due, count, counted = begin + robot / robots / rate, robot, begin + SETTLING_S
            while (now := time.perf_counter()) < counted + seconds:
                if now < due:
                    await asyncio.sleep(due - now)
                asked = time.perf_counter()
                await connection.send(frames[count % len(frames)])
                answer = await connection.recv()
                took = time.perf_counter() - asked
                if isinstance(answer, str):
                    raise RuntimeError(f"the server says: {answer}")
                if asked >= counted and asked + took <= counted + seconds:
                    latencies.append(took)
                    batches.append(unpack(answer)["server_timing"]["batch"])
                due, count = max(due + 1 / rate, time.perf_counter()), count + 1

    await asyncio.gather(*(live(robot) for robot in range(robots)))
    if not latencies:
        return Drive(0.0, None, None, None)
    p50, p95 = 1e3 * np.percentile(latencies, [50, 95])
    return Drive(len(latencies) / seconds, float(p50), float(p95), float(np.mean(batches)))
