"""Processes: how workers are born, how Ctrl-C is kept out of the middle of things, how ranks share a work out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Read by BLAS, OpenMP and the software renderer when they load, before any code of ours runs in the child.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


@contextmanager
def workers_are_born() -> Iterator[None]:
    """Processes that are spawned in this block use one thread and ignore SIGINT, from their first instruction on.

    Without the latter, Ctrl-C while a child is still importing prints a traceback per child.
    """
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    main = threading.current_thread() is threading.main_thread()  # signals can be set there only
    os.environ.update(ONE_THREAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def endings_wait() -> Iterator[Callable[[], bool]]:
    """In this block Ctrl-C, ``kill`` and a closed terminal do no more than turn the function that it gives true.

    So a robot is told to hold before the program ends. A second one of the same kind does not wait.
    """
    told: list[int] = []

    def note(number: int, _: object) -> None:
        told.append(number)
        signal.signal(number, before[number])

    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {int(number): signal.getsignal(number) for number in endings}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], None]]:
    """Ctrl-C in this block waits until the function that it gives is called; a second one does not wait.

    So what belongs together, such as new weights and the number of their step, is never cut in half.
    """
    elsewhere = threading.current_thread() is not threading.main_thread()  # signals can be set in the main one only
    if elsewhere or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: None
        return
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, handler)

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    handler = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, handler)


@dataclass(frozen=True)
class Rank:
    """Which of ``world`` processes this one is, as torchrun numbers them.

    Attributes:
        local: its number on its own machine, which decides its GPU.
    """

    rank: int
    world: int
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Rank | None:
        """From ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; None for a process that is alone."""
        world = int(environment.get("WORLD_SIZE", "1"))
        if world < 2 or "RANK" not in environment:
            return None
        return cls(int(environment["RANK"]), world, int(environment.get("LOCAL_RANK", "0")))


SHARE_POLL_SECONDS = 0.5


def share_out(
    folder: Path, rank: Rank, do: Callable[[int], None], finished: Callable[[], bool], finish: Callable[[], None]
) -> None:
    """Do this process's share of a work, then those of processes that died, until all of it is finished.

    Share k is in the hands of whoever holds the lock ``folder/.share-k-of-n``. Locks are the system's: a process that
    dies, however it dies, holds none, so that another one takes its share over. The folder must be one that all see
    and whose file system keeps ``flock`` across its machines.

    Args:
        do: does share k of ``rank.world``: what an earlier holder has not done.
        finished: whether :func:`finish` is done; asked again after every lock.
        finish: run by one process, once all shares are done. A process that dies in it leaves it to another.
    """
    locks = {k: folder / f".share-{k}-of-{rank.world}" for k in range(rank.world)}
    last = folder / ".share-last"
    left = [(rank.rank + i) % rank.world for i in range(rank.world)]
    while not finished():
        before = len(left)
        for k in list(left):
            with _held(locks[k]) as mine:
                if mine:
                    if not finished():
                        do(k)
                    left.remove(k)
        if not left:
            with _held(last) as mine:
                if mine and not finished():
                    finish()
        if len(left) == before and not finished():
            time.sleep(SHARE_POLL_SECONDS)
    for lock in (*locks.values(), last):
        lock.unlink(missing_ok=True)  # who comes later makes a new one, and sees that all is finished


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether the lock is ours in this block."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mine = False
        else:
            mine = True
        yield mine
