"""Runs the slots of a collection, in this process or in several; every finished episode becomes a file of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from moe_robot.data.demonstrate import Learner, demonstrate, demonstrate_until_success
from moe_robot.data.durable import disk_errors
from moe_robot.data.layout import PNG
from moe_robot.data.record import EpisodeRecord
from moe_robot.processes import workers_are_born
from moe_robot.registry import make_environment
from moe_robot.types import UserError

DEATHS_IN_A_ROW = 3


@dataclass(frozen=True)
class Settings:
    """What decides every bit of a collection, apart from its length.

    Attributes:
        environment: Gymnasium id.
        options: keyword arguments of the environment.
        tasks: task names, in the order of the schedule.
        seed: episode i of every task starts from seed + i.
        noise: mean disturbance of the executed action, in the environment's unit of one step's travel.
        instructions: instruction set of the sentences, None when the environment has no sets.
        successes_only: try again until the expert succeeds; False keeps the first rollout as it is.
        tail: steps that are recorded after success.
        codec: how frames are stored, see :class:`moe_robot.data.record.EpisodeBuilder`.
        policy: checkpoint of a learner that drives some of the turns, None for the expert alone.
        policy_share: of the turns, those that are the learner's.
        in_a_row: episodes of one task that are made one after another; the order of work alone, not of the data set.
    """

    environment: str
    options: Mapping[str, Any]
    tasks: tuple[str, ...]
    seed: int
    noise: float
    instructions: str | None
    successes_only: bool = True
    tail: int = 0
    codec: str = PNG
    policy: Path | None = None
    policy_share: float = 0.0
    in_a_row: int = 1

    def slot(self, number: int) -> tuple[str, int]:
        """Task and seed of the ``number``-th episode."""
        return self.tasks[number % len(self.tasks)], self.seed + number // len(self.tasks)

    def work_order(self, slots: Iterable[int]) -> list[int]:
        """``slots`` as they are best made: ``in_a_row`` of the first task, as many of the second, and so on."""
        n = len(self.tasks)
        return sorted(slots, key=lambda slot: (slot // n // self.in_a_row, slot % n, slot))


def pending_path(pending: Path, slot: int) -> Path:
    """Where the finished episode of a slot waits for its turn."""
    return pending / f"{slot:06d}.parquet"


def produce(settings: Settings, slots: Sequence[int], pending: Path, workers: int) -> Generator[tuple[int, int]]:
    """Put the episode of every slot into ``pending``; yields (slot, number of rollouts it took) as they finish.

    The slots of a worker that dies are run again.
    """
    if not slots:
        return
    if min(workers, len(slots)) == 1:
        worker = _Worker(settings, pending)
        try:
            for slot in slots:
                yield slot, worker.run(slot)
        finally:
            worker.close()
        return
    left, deaths = dict.fromkeys(slots), 0
    while left:
        try:
            for slot, attempts in _in_pool(settings, list(left), pending, workers):
                deaths = 0
                del left[slot]
                yield slot, attempts
        except BrokenProcessPool as error:
            deaths += 1
            if deaths >= DEATHS_IN_A_ROW:
                raise UserError(
                    f"a collection worker died {deaths} times with nothing finished in between (out of memory?): "
                    "finished episodes are kept, run the same command again with fewer --workers"
                ) from error
        for slot in [slot for slot in left if pending_path(pending, slot).exists()]:  # finished, and then not reported
            deaths = 0
            del left[slot]
            yield slot, int(EpisodeRecord.load(pending_path(pending, slot)).extras["attempts"])


def _in_pool(settings: Settings, slots: Sequence[int], pending: Path, workers: int) -> Generator[tuple[int, int]]:
    """The slots in processes, until all are done or one of the processes dies: the pool then ends the others too."""
    queue = iter(slots)
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(settings, pending)
    )
    # A short queue keeps slots nearly in this order, so that few finished episodes wait for a slow earlier one.
    running: dict[Future[int], int] = {}
    try:
        with workers_are_born():  # the pool starts them at the first submissions
            for slot in _up_to(2 * workers, queue):
                running[pool.submit(_run_in_worker, slot)] = slot
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot = running.pop(future)
                yield slot, future.result()
                for following in _up_to(1, queue):
                    running[pool.submit(_run_in_worker, following)] = following
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _up_to(count: int, queue: Iterator[int]) -> list[int]:
    return [slot for _, slot in zip(range(count), queue, strict=False)]


class _Worker:
    """Collects slots in one process. The environment is made by the first slot, so that its errors reach the user."""

    def __init__(self, settings: Settings, pending: Path) -> None:
        self.settings, self.pending, self.env = settings, pending, None
        self.learner: Learner | None = None

    def close(self) -> None:
        if self.env is not None:
            self.env.close()

    def run(self, slot: int) -> int:
        """Collect one slot; the number of rollouts it took."""
        s = self.settings
        if self.env is None:
            self.env = make_environment(s.environment, **s.options)
            self.learner = Learner(s.policy, s.policy_share) if s.policy else None
        task, seed = s.slot(slot)
        if s.successes_only:
            episode = demonstrate_until_success(
                self.env, task, seed, s.noise, s.instructions, s.tail, s.codec, self.learner
            )
        else:
            rollout = demonstrate(self.env, task, seed, 0, s.noise, s.instructions, s.tail, s.codec, self.learner)
            episode = rollout.episode
        with disk_errors(self.pending.parent):
            episode.save(pending_path(self.pending, slot))
        return int(episode.extras["attempts"])


_worker: _Worker | None = None


def _start_worker(settings: Settings, pending: Path) -> None:
    """Set up a worker process. It ends with its parent, however that ends."""
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(settings, pending)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _run_in_worker(slot: int) -> int:
    assert _worker is not None
    return _worker.run(slot)
