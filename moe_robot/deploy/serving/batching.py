"""Micro-batching: observations that arrive within a short window of each other share one pass of the network."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moe_robot.deploy.serving.metrics import Metrics
from moe_robot.deploy.serving.observations import Sensed
from moe_robot.deploy.serving.worker import PolicyWorker, WorkerLost
from moe_robot.types import UserError


class NoAnswer(Exception):
    """Why an observation that was in order has no answer; one line."""


@dataclass(frozen=True)
class Planned:
    """What one robot gets.

    Attributes:
        actions: the plan (H, A), float32.
        queued_s: from arrival to the batch.
        inference_s: that the batch's pass took.
        batch: robots in it.
        generation: which policy planned, counted from 1.
    """

    actions: np.ndarray
    queued_s: float
    inference_s: float
    batch: int
    generation: int


@dataclass
class _Waiting:
    sensed: Sensed
    done: asyncio.Future[Planned]
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def sensors(self) -> frozenset[str]:
        return frozenset(self.sensed.arrays)


class Batcher:
    """Collects observations, asks the policy, and hands out the answers.

    A batch begins when the policy is free and the oldest observation has waited ``window_s``, or earlier when
    ``largest`` wait, or when nobody is left to wait for. While the policy is busy observations collect by themselves,
    so under load the window costs nothing.
    """

    def __init__(self, window_s: float, largest: int, robots: Callable[[], int], metrics: Metrics) -> None:
        """No policy answers yet.

        Args:
            window_s: longest wait for company while the policy is idle, seconds.
            largest: observations in one batch.
            robots: how many are connected, so could still send something.
            metrics: counts.
        """
        self.window_s, self.largest = window_s, largest
        self._robots, self._metrics = robots, metrics
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._between = asyncio.Lock()
        self._worker: PolicyWorker | None = None
        self.generation = 0
        self.lost: Callable[[PolicyWorker, str], None] = lambda worker, why: None
        """Called when the policy's process ended in the middle of a batch."""

    async def put_in_charge(self, worker: PolicyWorker | None) -> PolicyWorker | None:
        """From the next batch on ``worker`` answers, or nobody; returns the one before, which then is idle."""
        async with self._between:
            before, self._worker = self._worker, worker
            self.generation += worker is not None
            return before

    async def plan(self, sensed: Sensed) -> Planned:
        """Wait for the answer to an observation.

        Raises:
            NoAnswer: the policy is being loaded again, its process ended, or what it answered is no plan.
            UserError: what it says is wrong with the observation.
        """
        waiting = _Waiting(sensed, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._metrics.queue.set(len(self._queue))
        self._arrived.set()
        return await waiting.done

    async def run(self) -> None:
        """Make batches until cancelled."""
        while True:
            await self._company()
            async with self._between:
                batch = self._take()
                if batch:
                    await self._answer(batch)

    async def _company(self) -> None:
        """Return when a batch is to begin."""
        while True:
            while self._queue and self._queue[0].done.done():  # its robot has gone
                self._queue.popleft()
            self._arrived.clear()
            patience: float | None = None
            if self._queue:
                patience = self._queue[0].arrived + self.window_s - time.perf_counter()
                if patience <= 0 or len(self._queue) >= min(self.largest, max(self._robots(), 1)):
                    return
            try:
                await asyncio.wait_for(self._arrived.wait(), patience)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The oldest observations with the same sensors as the very oldest."""
        taken: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        for waiting in self._queue:
            if waiting.done.done():
                continue
            fits = not taken or waiting.sensors == taken[0].sensors
            (taken if fits and len(taken) < self.largest else left).append(waiting)
        self._queue = left
        self._metrics.queue.set(len(left))
        return taken

    async def _answer(self, batch: list[_Waiting]) -> None:
        worker, began = self._worker, time.perf_counter()
        if worker is None:
            return self._fail(batch, "the policy is being loaded again: try in a few seconds")
        try:
            answered = await worker.ask([waiting.sensed for waiting in batch])
        except WorkerLost as lost:
            self._worker = None
            self._fail(batch, f"the policy gave no answer: {lost}")
            return self.lost(worker, str(lost))
        self._metrics.batch_size.note(len(batch))
        self._metrics.inference.note(answered.inference_s)
        if answered.experts:
            self._metrics.note_load(answered.experts, answered.routes_LE)
        for waiting, plan in zip(batch, answered.plans, strict=True):
            self._metrics.waited.note(began - waiting.arrived)
            if waiting.done.done():
                continue
            if isinstance(plan, str):
                waiting.done.set_exception(UserError(plan))
                continue
            queued = began - waiting.arrived
            waiting.done.set_result(Planned(plan, queued, answered.inference_s, len(batch), self.generation))

    def _fail(self, batch: list[_Waiting], why: str) -> None:
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_exception(NoAnswer(why))
