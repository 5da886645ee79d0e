"""Worker processes with a pipe each: started, heard when they fail, and let go."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from moe_robot.processes import workers_are_born
from moe_robot.types import UserError


@dataclass
class Worker:
    """A process and our end of its pipe, which ends when the process does."""

    process: SpawnProcess
    connection: Connection


def hire(target: Callable[..., None], *arguments: Any) -> Worker:
    """Start ``target(connection, *arguments)`` in a process of its own."""
    context = multiprocessing.get_context("spawn")  # forked children would share GL and CUDA contexts
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    with workers_are_born():
        process.start()
    theirs.close()  # so that the pipe ends when the child does
    return Worker(process, ours)


def exit_code(worker: Worker) -> int | None:
    """Wait for a dead worker's end and close its pipe."""
    worker.process.join()
    worker.connection.close()
    return worker.process.exitcode


def let_go(workers: Sequence[Worker]) -> None:
    """End these workers, the stubborn ones too."""
    for worker in workers:
        worker.connection.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(timeout=5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@dataclass(frozen=True)
class Complaint:
    """An error in a worker, on its way to the parent.

    Attributes:
        defect: "" for what the user can mend, otherwise the worker's traceback.
    """

    message: str
    defect: str = ""


@contextmanager
def complaining(tell: Callable[[Complaint], None]) -> Iterator[None]:
    """In a worker: errors are told to the parent, and the end of the pipe is the end of the work."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is done with us, or gone
    except (UserError, OSError) as error:
        tell(Complaint(str(error)))
    except Exception as error:
        tell(Complaint(f"{type(error).__name__}: {error}", traceback.format_exc()))


class _InWorker(Exception):
    """Carries a worker's traceback, so that it is printed above ours."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def raise_if_complaint(heard: Any, where: str) -> None:
    """In the parent: raise what went wrong in a worker, with ``where`` in front.

    Raises:
        UserError: what the worker raised as such, or the system.
        RuntimeError: any other error.
    """
    if isinstance(heard, Complaint):
        if heard.defect:
            raise RuntimeError(f"{where} failed: {heard.message}") from _InWorker(heard.defect)
        raise UserError(f"{where}: {heard.message}")
