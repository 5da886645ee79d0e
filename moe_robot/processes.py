"""How worker processes are born: on one thread each, and deaf to Ctrl-C, which is their parent's business."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
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
