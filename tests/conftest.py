"""What tests of several rooms need: plug-ins where Python finds them, and a death for workers now and then."""

import importlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # Begun in the background of a shell, all would inherit that Ctrl-C is ignored, and tests send it to programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _plugged_in(folder: Path) -> Iterator[ModuleType]:
    """The package of entry points in ``folder``, on ``sys.path`` (spawned workers inherit it) and on PYTHONPATH."""
    sys.path.insert(0, str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        (described,) = folder.glob("*.dist-info")
        yield importlib.import_module(described.name.partition("-")[0])
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def plugged_in():
    """A context manager that makes a plug-in's folder known as long as it lasts, and gives its module."""
    return _plugged_in


class Reaper:
    """Kills one of this process's workers whenever so much more is done, ``kills`` times, while its block runs.

    Attributes:
        done: what has been done so far; whoever knows sets it.
        killed: how many have been.
    """

    def __init__(self, kills: int, every: int, within_s: float, seed: int) -> None:
        self.done = self.killed = 0
        self._kills, self._every, self._within_s = kills, every, within_s
        self._chance, self._over = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._kill_now_and_then)

    def __enter__(self) -> "Reaper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill_now_and_then(self) -> None:
        while self.killed < self._kills and not self._over.is_set():
            before = self.done
            while self.done < before + self._every and not self._over.is_set():
                time.sleep(0.003)
            time.sleep(self._chance.uniform(0.0, self._within_s))
            if victims := multiprocessing.active_children():
                self._chance.choice(victims).kill()
                self.killed += 1


@pytest.fixture
def reaper():
    """Makes reapers: ``reaper(kills=5, every=2, within_s=0.1, seed=9)``."""
    return Reaper
