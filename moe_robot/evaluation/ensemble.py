"""Plays many environments with one network: they stand in worker processes, their observations are planned together.

The order of everything is fixed. A seat is a place for one episode at a time; seats are divided into two halves that
take turns, and in each turn a half first waits for all its environments, then gets its plans in one pass, then moves on
while the other half is planned for. Which observations meet in a pass is thus decided by the list of jobs and the
number of seats alone: not by which process is quick, how many there are, or whether one dies on the way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from multiprocessing.connection import Connection

import numpy as np

from moe_robot.evaluation.episode import Actor, switch_off
from moe_robot.evaluation.roles import Cast, Episode, Job
from moe_robot.evaluation.staff import Worker, complaining, exit_code, hire, let_go, raise_if_complaint
from moe_robot.evaluation.stage import Ending, Stage
from moe_robot.evaluation.workers import Solo, Take
from moe_robot.types import Observation, PlansTogether, Routing, UserError

TRIES = 3
"""Workers may die over the same moment of an episode so often, less one; it counts for all that the worker held."""


@dataclass(frozen=True)
class Errand:
    """What a worker is asked to do for a seat: begin the job, do the plans in turn, and say what is seen then.

    Attributes:
        number: which errand it is, so that an answer which came too late is told apart.
        job: None to go on with the one that stands there.
        plans: actions (n, A) each.
    """

    number: int
    seat: int
    job: Job | None
    plans: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Seen:
    """The answer to an errand: what is seen, the wall time of the last plan's steps, and how the episode ended."""

    errand: int
    seat: int
    observation: Observation
    step_ms: list[float]
    ending: Ending | None


@dataclass(eq=False)
class _Seat:
    """One place, and what the policy's side knows of the episode in it."""

    number: int
    take: Take | None = None
    errand: int = -1
    seen: Seen | None = None
    played: list[np.ndarray] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    routing: Routing | None = None

    def episode(self) -> Episode:
        assert self.take is not None
        assert self.seen is not None
        assert self.seen.ending is not None
        return self.seen.ending.episode(self.take.job, tuple(self.latency_ms), tuple(self.step_ms), self.routing)


class Ensemble(AbstractContextManager["Ensemble"]):
    """``seats`` environments in ``size`` worker processes around one actor's policy, in this process.

    Videos are filmed by the actor alone. Workers start when first needed and stay until the ``with`` block ends.

    Raises:
        UserError: the policy plans for one robot at a time, or there are more processes than environments.
    """

    def __init__(self, actor: Actor, size: int, seats: int) -> None:
        if size > seats:
            raise UserError(f"--workers {size} is more than --envs {seats}: some would have nothing to do")
        if not isinstance(actor.policy, PlansTogether):
            raise UserError(
                f"{type(actor.policy).__name__} answers one observation at a time (it has no action_chunks): "
                "leave --envs away"
            )
        self.actor, self.policy = actor, actor.policy
        self.seats = [_Seat(number) for number in range(seats)]
        self.size = size
        self.workers: dict[int, Worker] = {}
        self.deaths: dict[tuple[Take, int], int] = {}
        self.errands = count()
        self.warm = False

    def play(self, takes: Sequence[Take]) -> Iterator[Episode]:
        """See :class:`.workers.Players`."""
        for filmed, some in groupby(takes, key=lambda take: take.videos is not None):
            if filmed:
                yield from Solo(self.actor).play(list(some))
                continue
            for _, alike in groupby(some, key=lambda take: (take.job.knockout, take.job.sensors_off)):
                yield from self._play(deque(alike))

    def _play(self, waiting: deque[Take]) -> Iterator[Episode]:
        """The episodes of takes with the same parts switched off."""
        switch_off(self.actor.policy, waiting[0].job)
        middle = (len(self.seats) + 1) // 2
        halves = [half for half in (self.seats[:middle], self.seats[middle:]) if half]
        try:
            for half in halves:
                self._begin(half, waiting)
            while any(seat.take is not None for seat in self.seats):
                for half in halves:
                    self._hear(half)
                    occupied = [seat for seat in half if seat.take is not None and seat.seen is not None]
                    ended = [seat for seat in occupied if seat.seen is not None and seat.seen.ending is not None]
                    self._plan([seat for seat in occupied if seat not in ended])
                    episodes = [seat.episode() for seat in ended]
                    for seat in ended:
                        seat.take = None
                    self._begin(half, waiting)
                    yield from episodes
        finally:
            for seat in self.seats:
                seat.take = None

    def _begin(self, half: Sequence[_Seat], waiting: deque[Take]) -> None:
        """The next jobs, where there is place."""
        for seat in half:
            if seat.take is None and waiting:
                seat.take, seat.seen, seat.routing = waiting.popleft(), None, None
                seat.played, seat.latency_ms, seat.step_ms = [], [], []
                self._send(seat, seat.take.job)

    def _hear(self, half: Sequence[_Seat]) -> None:
        """Wait until every seat of the half that was sent something has answered."""
        for seat in half:
            while seat.take is not None and seat.seen is None:
                worker = self._worker_of(seat)
                try:
                    heard, number = worker.connection.recv()
                except (EOFError, OSError):  # the latter when it died while it spoke
                    self._replace(worker)
                    continue
                of = self.seats[number]
                raise_if_complaint(heard, str(of.take))
                if heard.errand == of.errand:
                    of.seen = heard
            if seat.seen is not None and seat.seen.step_ms:
                first, *others = seat.seen.step_ms
                seat.step_ms += [seat.latency_ms[-1] + first, *others]

    def _plan(self, seats: Sequence[_Seat]) -> None:
        """One pass of the network for all these seats; each moves on with its own plan."""
        seen = [seat.seen.observation for seat in seats if seat.seen is not None]
        if not seen:
            return
        if not self.warm:  # so that no episode pays for the first batch
            self.policy.action_chunks(seen)
            self.warm = True
        start = time.perf_counter()
        chunks_BHA = self.policy.action_chunks(seen)[:, : self.policy.steps_per_plan]
        latency = 1000 * (time.perf_counter() - start)
        routings = self.policy.routings() or [None] * len(seats)
        for seat, actions_HA, routing in zip(seats, chunks_BHA, routings, strict=True):
            seat.latency_ms.append(latency)
            if routing is not None:
                seat.routing = routing if seat.routing is None else seat.routing + routing
            seat.seen = None
            seat.played.append(actions_HA)
            self._send(seat, None, (actions_HA,))

    # --- the processes ----------------------------------------------------------------------------------------------
    def _worker_of(self, seat: _Seat) -> Worker:
        number = seat.number % self.size
        if number not in self.workers:
            self.workers[number] = hire(_serve, self.actor.cast)
        return self.workers[number]

    def _send(self, seat: _Seat, job: Job | None, plans: tuple[np.ndarray, ...] = ()) -> None:
        seat.errand = next(self.errands)
        with suppress(OSError):  # it has died: the end of its pipe is heard next, and it all is sent again
            self._worker_of(seat).connection.send(Errand(seat.errand, seat.number, job, plans))

    def _replace(self, worker: Worker) -> None:
        """A worker has died: another one plays its episodes again up to where they stood, with the same actions."""
        number = next(number for number, one in self.workers.items() if one is worker)
        del self.workers[number]
        code = exit_code(worker)
        for seat in self.seats[number :: self.size]:
            if seat.take is None or (seat.seen is not None and seat.seen.ending is not None):
                continue
            moment = (seat.take, len(seat.played))
            self.deaths[moment] = self.deaths.get(moment, 0) + 1
            if self.deaths[moment] >= TRIES:
                raise UserError(
                    f"{seat.take}: {TRIES} workers died over this episode or one beside it (last exit code {code}): "
                    "use fewer --workers or --envs if memory is short, or --envs 1 --workers 1 to see it happen"
                )
            self._send(seat, seat.take.job, tuple(seat.played))

    def __exit__(self, *_: object) -> None:
        let_go(list(self.workers.values()))
        self.workers = {}


def _serve(connection: Connection, cast: Cast) -> None:
    """The life of a worker: an environment per seat, made when first needed; errands until the pipe closes."""
    stages: dict[int, Stage] = {}
    try:
        while True:
            errand: Errand = connection.recv()
            with complaining(partial(_tell, connection, errand.seat)):
                if errand.seat not in stages:
                    stages[errand.seat] = Stage(cast)
                _tell(connection, errand.seat, _run(stages[errand.seat], errand))
    except (EOFError, OSError):
        pass  # the parent is done with us, or gone
    finally:
        for stage in stages.values():
            stage.close()


def _tell(connection: Connection, seat: int, message: object) -> None:
    connection.send((message, seat))


def _run(stage: Stage, errand: Errand) -> Seen:
    durations: list[float] = []
    observation = stage.begin(errand.job) if errand.job is not None else None
    for plan in errand.plans:
        observation, durations = stage.play(plan)
    assert observation is not None
    return Seen(errand.number, errand.seat, observation, durations, stage.ending)
