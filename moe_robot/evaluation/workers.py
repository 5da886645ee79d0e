"""Runs jobs in worker processes, or in this one, and notices when a worker dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from moe_robot.evaluation.episode import Actor, Cast, Episode, Job
from moe_robot.evaluation.staff import Worker, complaining, exit_code, hire, let_go, raise_if_complaint
from moe_robot.types import UserError

TRIES = 3  # a job whose worker died is run again; the third time it is no accident
LOADING_TRIES = 3
"""So many workers may die in a row while they load, less one."""
READY = "ready"


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


class Crew(AbstractContextManager["Crew"]):
    """Up to ``size`` worker processes, each with a pipe of its own: when one dies it is known which job it held.

    They are started when first needed and stay until the ``with`` block ends.
    """

    def __init__(self, cast: Cast, rehearsal: Job, size: int) -> None:
        self.cast, self.rehearsal, self.size = cast, rehearsal, size
        self.crew: list[_Member] = []
        self.deaths: dict[Take, int] = {}
        self.stillborn = 0

    def play(self, takes: Sequence[Take]) -> Iterator[Episode]:
        """See :class:`Players`."""
        waiting, left = deque(takes), len(takes)
        while left:
            while len(self.crew) < min(self.size, left):
                self.crew.append(_Member(hire(_serve, self.cast, self.rehearsal)))
            for member in self.crew:
                if member.ready and member.take is None and waiting:
                    member.take = waiting.popleft()
                    with suppress(OSError):  # it died idle: the end of its pipe is heard next
                        member.worker.connection.send(member.take)
            for connection in wait([member.worker.connection for member in self.crew]):
                member = next(member for member in self.crew if member.worker.connection is connection)
                try:
                    heard = member.worker.connection.recv()
                except (EOFError, OSError):  # the latter when it died while it spoke
                    lost = self._bury(member)
                    if lost is not None:
                        waiting.appendleft(lost)
                    continue
                raise_if_complaint(heard, str(member.take) if member.take else "loading in a worker")
                member.ready, member.take, self.stillborn = True, None, 0
                if heard != READY:
                    left -= 1
                    yield heard

    def _bury(self, member: _Member) -> Take | None:
        """Remove a dead worker; returns the take that it held."""
        code, take = exit_code(member.worker), member.take
        self.crew.remove(member)
        if not member.ready:
            self.stillborn += 1
            if self.stillborn >= LOADING_TRIES:
                raise UserError(
                    f"{LOADING_TRIES} workers in a row died while loading (last exit code {code}): use fewer --workers "
                    "if memory is short"
                )
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
        let_go([member.worker for member in self.crew])
        self.crew = []


@dataclass
class _Member:
    worker: Worker
    take: Take | None = None
    ready: bool = False


def _serve(connection: Connection, cast: Cast, rehearsal: Job) -> None:
    """The life of a worker: load once, then play what comes until the pipe closes."""
    actor = None
    try:
        with complaining(connection.send):
            actor = Actor(cast, rehearsal)
            connection.send(READY)
            while True:
                connection.send(perform(actor, connection.recv()))
    finally:
        if actor is not None:
            actor.close()
