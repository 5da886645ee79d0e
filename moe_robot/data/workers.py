"""Runs the slots of a collection, in this process or in several; every finished episode becomes a file of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path

from moe_robot.data.demonstrate import Learner, Settings, demonstrate, demonstrate_until_success
from moe_robot.data.durable import disk_errors
from moe_robot.data.record import EpisodeRecord
from moe_robot.processes import workers_are_born
from moe_robot.registry import make_environment
from moe_robot.types import UserError

DEATHS_IN_A_ROW = 3


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
            self.learner = Learner(s.policy, s.policy_share, s.policy_turn) if s.policy else None
        task, seed = s.slot(slot)
        if s.successes_only:
            episode = demonstrate_until_success(self.env, task, seed, s, self.learner)
        else:
            episode = demonstrate(self.env, task, seed, 0, s, self.learner).episode
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
