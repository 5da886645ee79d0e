"""Runs jobs in worker processes, or in this one, and notices when a worker dies."""

from __future__ import annotations

import multiprocessing
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

from moe_robot.evaluation.episode import Actor, Cast, Episode, Job
from moe_robot.processes import workers_are_born
from moe_robot.types import UserError

TRIES = 2  # a job whose worker died is run once more; twice is no accident


@dataclass(frozen=True)
class Take:
    """A job, and the folder for its video when it is to be filmed."""

    job: Job
    videos: Path | None = None

    def __str__(self) -> str:
        return f"task {self.job.task} seed {self.job.seed}"


class Players(Protocol):
    """Something that plays takes."""

    def play(self, takes: Sequence[Take]) -> Iterator[Episode]:
        """Episodes of all takes, in the order in which they end.

        Raises:
            UserError: what an episode raised as such, or that two workers died over the same job.
            RuntimeError: any other error in an episode, with the task and seed.
        """
        ...


def perform(actor: Actor, take: Take) -> Episode:
    """Play a take's job, with the camera running if it has a folder."""
    if take.videos is None:
        return actor.run(take.job)
    from moe_robot.evaluation.video import film

    return film(actor, take.job, take.videos)


@dataclass(frozen=True)
class Solo:
    """One actor, in this process."""

    actor: Actor

    def play(self, takes: Sequence[Take]) -> Iterator[Episode]:
        """See :class:`Players`."""
        for take in takes:
            try:
                episode = perform(self.actor, take)
            except (UserError, OSError) as error:
                raise UserError(f"{take}: {error}") from error
            except Exception as error:
                raise RuntimeError(f"{take} failed: {type(error).__name__}: {error}") from error
            yield episode


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    take: Take | None = None
    ready: bool = False


class Crew(AbstractContextManager["Crew"]):
    """Up to ``size`` worker processes, each with a pipe of its own: when one dies it is known which job it held.

    They are started when first needed and stay until the ``with`` block ends.
    """

    def __init__(self, cast: Cast, rehearsal: Job, size: int) -> None:
        self.cast, self.rehearsal, self.size = cast, rehearsal, size
        self.crew: list[_Worker] = []
        self.deaths: dict[Take, int] = {}

    def play(self, takes: Sequence[Take]) -> Iterator[Episode]:
        """See :class:`Players`."""
        waiting, left = deque(takes), len(takes)
        while left:
            while len(self.crew) < min(self.size, left):
                self.crew.append(self._hire())
            for worker in self.crew:
                if worker.ready and worker.take is None and waiting:
                    worker.take = waiting.popleft()
                    with suppress(BrokenPipeError):  # it died idle: the end of its pipe is heard next
                        worker.connection.send(worker.take)
            for connection in wait([worker.connection for worker in self.crew]):
                worker = next(worker for worker in self.crew if worker.connection is connection)
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    lost = self._bury(worker)
                    if lost is not None:
                        waiting.appendleft(lost)
                    continue
                _raise_if_error(kind, content, worker.take)
                worker.ready, worker.take = True, None
                if content is not None:
                    left -= 1
                    yield content

    def _hire(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # forked children would share GL and CUDA contexts
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.cast, self.rehearsal), daemon=True)
        with workers_are_born():
            process.start()
        theirs.close()  # so that the pipe ends when the child does
        return _Worker(process, ours)

    def _bury(self, worker: _Worker) -> Take | None:
        """Remove a dead worker; returns the take that it held."""
        worker.process.join()
        worker.connection.close()
        self.crew.remove(worker)
        code, take = worker.process.exitcode, worker.take
        if not worker.ready:
            raise UserError(f"a worker died while loading (exit code {code}): use fewer --workers if memory is short")
        if take is None:
            return None
        self.deaths[take] = self.deaths.get(take, 0) + 1
        if self.deaths[take] >= TRIES:
            raise UserError(
                f"{take}: {TRIES} workers died over this episode (last exit code {code}): use fewer --workers if "
                "memory is short, or --workers 1 to see it happen"
            )
        return take

    def __exit__(self, *_: object) -> None:
        for worker in self.crew:
            worker.connection.close()
            worker.process.terminate()
        for worker in self.crew:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.crew = []


class _InWorker(Exception):
    """Carries a worker's traceback, so that it is printed above ours."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _raise_if_error(kind: str, content: Any, take: Take | None) -> None:
    where = str(take) if take else "loading in a worker"
    if kind == "user error":
        raise UserError(f"{where}: {content}")
    if kind == "error":
        summary, trace = content
        raise RuntimeError(f"{where} failed: {summary}") from _InWorker(trace)


def _serve(connection: Connection, cast: Cast, rehearsal: Job) -> None:
    """The life of a worker: load once, then play what comes until the pipe closes."""
    actor = None
    try:
        actor = Actor(cast, rehearsal)
        connection.send(("ready", None))
        while True:
            connection.send(("episode", perform(actor, connection.recv())))
    except (EOFError, BrokenPipeError):
        pass  # the parent is done with us, or gone
    except (UserError, OSError) as error:
        connection.send(("user error", str(error)))
    except Exception as error:
        connection.send(("error", (f"{type(error).__name__}: {error}", traceback.format_exc())))
    finally:
        if actor is not None:
            actor.close()
