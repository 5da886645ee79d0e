"""Signals and threads of processes: how workers are born, and how Ctrl-C is kept out of the middle of things."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
