"""The policy in a process of its own: the connections go on whatever it does, and a new one is loaded beside the old.

What goes through the pipe is this package's own frames, so nothing is unpickled on either side.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.deploy.inference import in_one_line
from moe_robot.deploy.serving.observations import Sensed
from moe_robot.deploy.serving.wire import TRUSTED, pack, unpack
from moe_robot.processes import workers_are_born
from moe_robot.types import Features, UserError

LOAD_EVERY_S = 1.0
"""Between two looks at what the gate does: reading it takes time from a batch."""
LOADING_S, THINKING_S = 300.0, 30.0
"""A policy that takes longer to load, or to answer a batch, is given up."""


class WorkerLost(Exception):
    """The policy's process ended, or hangs."""


@dataclass(frozen=True)
class About:
    """What a loaded policy is.

    Attributes:
        features: of it.
        chunk: H, control steps planned at once.
        execute: of which it plays so many before it plans again.
        needs_all: whether every sensor must be there.
        reads: whether it reads the instruction.
        sha256: of its weights; empty where there is no file of them.
    """

    features: Features
    chunk: int
    execute: int
    needs_all: bool
    reads: bool
    sha256: str

    def misfit(self, other: About) -> str | None:
        """Why ``other`` cannot take this one's place under robots that are connected, or None."""
        for a, b in ((self, other), (other, self)):
            if fault := a.features.mismatch(b.features):
                return fault
        if self.chunk != other.chunk:
            return f"its plans have {other.chunk} steps, expected {self.chunk}"
        if (self.needs_all, self.reads) != (other.needs_all, other.reads):
            return "it needs other sensors, or reads instructions where the present one does not"
        return None


@dataclass(frozen=True)
class Answered:
    """What became of a batch.

    Attributes:
        plans: per robot (H, A), or one line that says why there is none.
        inference_s: that the pass took.
        experts: with ``routes_LE`` what the gate did, when it was looked at; empty otherwise.
        routes_LE: routes of each layer to each expert.
    """

    plans: Sequence[np.ndarray | str]
    inference_s: float
    experts: Sequence[str] = ()
    routes_LE: Sequence[Sequence[int]] = ()


class PolicyWorker:
    """Starts the process, loads the policy in it, and has it answer batches, one at a time."""

    def __init__(self, checkpoint: Path, device: str = "cpu", threads: int = 0, largest: int = 1) -> None:
        """Nothing runs yet. ``largest`` is the size of batch that it is to be warm for."""
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        arguments = (self._theirs, str(checkpoint), device, threads, largest)
        self._process = context.Process(target=_work, args=arguments, name="served policy", daemon=True)
        self._thread = ThreadPoolExecutor(1, "policy worker")
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return not self._stopped and self._process.is_alive()

    async def start(self) -> About:
        """Load the policy.

        Raises:
            UserError: it cannot be loaded.
        """
        with workers_are_born():
            self._process.start()
        self._theirs.close()  # so that the child's end is the only one, and its death is seen
        try:
            told = await self._hear(LOADING_S)
        except WorkerLost as lost:
            raise UserError(f"the policy cannot be loaded: {lost}") from lost
        if "failed" in told:
            raise UserError(told["failed"])
        return About(Features.from_json(told.pop("features")), **told)

    async def ask(self, robots: Sequence[Sensed]) -> Answered:
        """The plans of some robots that have the same sensors.

        Raises:
            WorkerLost: there will be no answer.
        """
        batch = {
            "arrays": {key: np.stack([robot.arrays[key] for robot in robots]) for key in robots[0].arrays},
            "tasks": [robot.task for robot in robots],
        }
        try:
            await self._in_thread(self._pipe.send_bytes, pack(batch))
        except (OSError, RuntimeError) as error:
            raise WorkerLost("its process ended") from error
        told = await self._hear(THINKING_S)
        plans = [told["errors"].get(str(i)) or told["plans"][i] for i in range(len(robots))]
        return Answered(plans, told["seconds"], told.get("experts", ()), told.get("routes", ()))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._stopped:
            return
        self._stopped = True
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._thread.shutdown(wait=True)
        self._pipe.close()

    async def _hear(self, patience_s: float) -> dict[str, Any]:
        try:
            if not await self._in_thread(self._pipe.poll, patience_s):
                raise WorkerLost(f"it did not answer within {patience_s:.0f} s")
            return unpack(await self._in_thread(self._pipe.recv_bytes), TRUSTED)
        except (EOFError, OSError, RuntimeError) as error:
            raise WorkerLost("its process ended") from error

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def _work(pipe: Connection, checkpoint: str, device: str, threads: int, largest: int) -> None:
    """The child: load the policy, then answer batches until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # often sent to a whole group: the parent decides
        signal.signal(number, signal.SIG_IGN)
    from moe_robot.deploy.serving.acting import ServedPolicy

    try:
        try:
            policy = ServedPolicy(Path(checkpoint), device, threads)
            policy.warm_up(sorted({2, largest} - {1}))
        except Exception as error:  # whatever a stranger's policy raises is told in one line
            pipe.send_bytes(pack({"failed": in_one_line(error)}))
            return
        names = ("chunk", "execute", "needs_all", "reads", "sha256")
        about = {name: getattr(policy, name) for name in names} | {"features": policy.features.to_json()}
        pipe.send_bytes(pack(about))
        looked = -LOAD_EVERY_S
        while True:
            batch = unpack(pipe.recv_bytes(), TRUSTED)
            began = time.perf_counter()
            plans = policy.answer(_robots(batch))
            seconds = time.perf_counter() - began
            told: dict[str, Any] = {
                "plans": [None if isinstance(plan, str) else plan for plan in plans],
                "errors": {str(i): plan for i, plan in enumerate(plans) if isinstance(plan, str)},
                "seconds": seconds,
            }
            if time.monotonic() - looked >= LOAD_EVERY_S and (load := policy.load()) is not None:
                told |= {"experts": list(load[0]), "routes": load[1].tolist()}
                looked = time.monotonic()
            pipe.send_bytes(pack(told))
    except (EOFError, OSError):
        pass  # the parent is gone


def _robots(batch: Mapping[str, Any]) -> list[Sensed]:
    rows = range(len(batch["tasks"]))
    return [Sensed({key: all_[i] for key, all_ in batch["arrays"].items()}, batch["tasks"][i]) for i in rows]
