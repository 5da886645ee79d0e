"""Collects demonstrations of scripted experts into a data set, in parallel, resumable at any moment.

The episodes of a collection form a fixed schedule: the first of every task, the second of every task, and so on. Slot
k of it is a pure function of the settings, so worker processes take slots in any order; each puts its finished episode
as a file of its own into ``pending/`` and the parent moves them into the data set in schedule order. The encoding,
which is the heavy part, thus happens in the workers; the parent copies bytes. The data set is the same, bit
for bit, for any number of workers and interruptions, and asking for more episodes later goes on where it stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moe_robot.data.demonstrate import KICK_FACTOR, KICK_RATE, KICK_STEPS, SEED_LIMIT, TURN_STEPS, Settings
from moe_robot.data.durable import TEMPORARY, disk_errors, only_writer
from moe_robot.data.layout import PNG, read_info
from moe_robot.data.record import EpisodeRecord
from moe_robot.data.store import DatasetWriter
from moe_robot.data.video import CODECS
from moe_robot.data.workers import pending_path, produce
from moe_robot.processes import Rank, share_out
from moe_robot.registry import (
    checkpoint_directory,
    environment_features,
    environment_id,
    load_policy,
    make_environment,
    select_tasks,
    unknown,
    weights_sha256,
)
from moe_robot.types import Features, UserError

PENDING = "pending"
IN_A_ROW = 10
"""Episodes of a task in a row where every task has a scene of its own that takes longer to build than an episode."""
COMMIT_SECONDS = 5.0
COMMIT_SHARE = 0.05
"""Commits come at least ``COMMIT_SECONDS`` apart and take at most this share of the time: they grow with the data set.
What is not yet committed lies finished in ``pending/``, so nothing hangs on their pace."""


@dataclass(frozen=True)
class Progress:
    """How far a collection is; given to the ``progress`` callback at the start and after each episode.

    Attributes:
        done: finished episodes, earlier runs included.
        total: episodes asked for.
        collected: episodes of this run.
        failures: rollouts of this run in which the expert failed.
    """

    done: int
    total: int
    collected: int
    failures: int


@dataclass(frozen=True)
class CollectReport:
    """What a collection did.

    Attributes:
        directory: the data set.
        episodes: episodes in it now.
        frames: frames in it now.
        collected: episodes that this run added.
        failures: task -> rollouts of this run in which the expert failed and that were thrown away.
        seconds: wall time of this run.
    """

    directory: Path
    episodes: int
    frames: int
    collected: int
    failures: Mapping[str, int]
    seconds: float


@dataclass
class _Tally:
    collected: int = 0
    failures: dict[str, int] = field(default_factory=dict)


def collect(
    environment: str,
    tasks: str,
    episodes: int,
    seed: int,
    out: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    noise: float = 0.3,
    kick: float | None = None,
    workers: int = 1,
    instructions: str = "seen",
    successes_only: bool = True,
    tail: int = 0,
    codec: str = PNG,
    policy: str | Path | None = None,
    policy_share: float = 0.5,
    policy_turn: int = TURN_STEPS,
    progress: Callable[[Progress], None] | None = None,
    rank: Rank | None = None,
) -> CollectReport:
    """Collect ``episodes`` demonstrations of each task into the data set ``out``, or go on with one begun before.

    Args:
        environment: short name or Gymnasium id.
        tasks: comma-separated tasks and groups.
        episodes: per task, in all: what is there already counts.
        seed: episode i of every task starts from ``seed + i``, which must stay below 10,000.
        out: directory of the data set.
        options: options of the environment. Those left out may follow from the tasks (``options_for``).
        noise: see :class:`Settings`.
        kick: see :class:`Settings`.
        workers: processes. With 1 everything runs in this process.
        instructions: instruction set of the sentences.
        successes_only: see :class:`Settings`.
        tail: see :class:`Settings`.
        codec: "png", or "h264" or "av1" for one video per camera.
        policy: checkpoint of a learner that drives part of the time; the labels are the expert's still (DAgger).
        policy_share: of the turns, those that are the learner's.
        policy_turn: control steps of a turn.
        progress: called after each episode.
        rank: of several processes that call this with the same arguments and share it out. Each returns when all is
            collected; the data set does not depend on it.

    Raises:
        UserError: bad settings, another data set in ``out``, a full disk, an expert that never succeeds.
        KeyboardInterrupt: after everything that was finished has been committed.
    """
    if episodes < 1 or workers < 1 or noise < 0 or tail < 0:
        given = f"episodes {episodes}, workers {workers}, noise {noise}, tail {tail}"
        raise UserError(f"{given}: expected at least 1, 1, 0 and 0")
    if kick is not None and kick < 0:
        raise UserError(f"kick {kick}: expected at least 0")
    if seed < 0 or seed + episodes > SEED_LIMIT:
        raise UserError(
            f"seeds {seed} to {seed + episodes - 1} are not all for collection (0 to {SEED_LIMIT - 1}): the others"
            " belong to tuning and reports, lower --seed or --episodes"
        )
    if codec not in (PNG, *CODECS):
        raise unknown("image codec", codec, (PNG, *CODECS))
    if not 0 < policy_share <= 1:
        raise UserError(f"policy_share {policy_share}: expected above 0 and at most 1")
    if policy_turn < 1:
        raise UserError(f"policy_turn {policy_turn}: expected at least 1 control step")
    started, directory, tally = time.monotonic(), Path(out), _Tally()
    os.environ.setdefault("LP_NUM_THREADS", "0")  # the software renderer is fastest here without threads of its own
    learner = checkpoint_directory(policy) if policy else None
    asked = Settings(
        environment_id(environment), options or {}, (), seed, noise, instructions, successes_only, tail, codec, learner,
        policy_share if learner else 0.0, kick, policy_turn=policy_turn,
    )  # fmt: skip
    settings, features, provenance = _settle(asked, tasks)
    order = _Order(settings, features, provenance, directory, episodes * len(settings.tasks), workers, progress, tally)
    with disk_errors(directory):
        found = _gather(order) if rank is None else _gather_together(order, rank)
    failures = {task: count for task, count in tally.failures.items() if count}
    seconds = time.monotonic() - started
    return CollectReport(directory, found.episodes, found.frames, tally.collected, failures, seconds)


@dataclass(frozen=True)
class _Order:
    """What is to be collected, and what this process has collected of it so far."""

    settings: Settings
    features: Features
    provenance: Mapping[str, Any]
    directory: Path
    total: int
    workers: int
    progress: Callable[[Progress], None] | None
    tally: _Tally

    def writer(self) -> DatasetWriter:
        return DatasetWriter(self.directory, self.features, self.provenance, self.settings.codec)

    def note(self, slot: int, attempts: int) -> None:
        task = self.settings.slot(slot)[0]
        self.tally.collected += 1
        self.tally.failures[task] = self.tally.failures.get(task, 0) + attempts - 1

    def report(self, done: int) -> None:
        if self.progress is not None:
            failures = sum(self.tally.failures.values())
            self.progress(Progress(done, self.total, self.tally.collected, failures))


def _gather(order: _Order, wait: bool = False) -> DatasetWriter:
    """Collect what is missing, and take it and all that waits into the data set."""
    with only_writer(order.directory, wait), ExitStack() as stack:
        writer = order.writer()
        pending = order.directory / PENDING
        pending.mkdir(exist_ok=True)
        stack.callback(_sweep, pending, writer)
        intake = _Intake(writer, pending, order.total)
        stack.callback(intake.close)
        missing = order.settings.work_order(set(range(writer.episodes, order.total)) - intake.waiting.keys())
        intake.take([])
        order.report(writer.episodes + len(intake.waiting))
        # closing: on Ctrl-C or an error the workers must be at rest before the last commit looks for their episodes
        finished = stack.enter_context(closing(produce(order.settings, missing, pending, order.workers)))
        for slot, attempts in finished:
            order.note(slot, attempts)
            intake.take([slot])
            order.report(writer.episodes + len(intake.waiting))
    return writer


def _gather_together(order: _Order, rank: Rank) -> DatasetWriter:
    """One rank's part: slots k, k + n, ... into ``pending/``. One rank then takes all into the data set."""
    pending = order.directory / PENDING

    def look() -> DatasetWriter:
        with only_writer(order.directory, wait=True):
            return order.writer()

    def committed() -> int:
        return read_info(order.directory).episodes

    def do(k: int) -> None:
        pending.mkdir(exist_ok=True)
        there, waiting = committed(), _finished(pending)
        missing = set(range(there, order.total)[(k - there) % rank.world :: rank.world]) - waiting.keys()
        order.report(there + len(waiting))
        work = order.settings.work_order(missing)
        with closing(produce(order.settings, work, pending, order.workers)) as finished:
            for slot, attempts in finished:
                order.note(slot, attempts)
                order.report(there + len(_finished(pending)))

    def finish() -> None:
        _gather(order, wait=True)

    look()  # another data set is refused before any work
    share_out(order.directory, rank, do, lambda: committed() >= order.total, finish)
    return look()


def _settle(asked: Settings, tasks: str) -> tuple[Settings, Features, dict[str, Any]]:
    """Look at the environment once: complete the settings, read its features, note where the data comes from."""
    name, options = asked.environment, dict(asked.options)
    env = make_environment(name, **options)
    try:
        chosen = select_tasks(env, tasks)
        options_for = getattr(env.unwrapped, "options_for", None)
        implied = {k: v for k, v in options_for(chosen).items() if k not in options} if options_for else {}
        if implied:
            env.close()
            options |= implied
            env = make_environment(name, **options)
        sets = getattr(env.unwrapped, "instruction_sets", ())
        if sets and asked.instructions not in sets:
            raise unknown("instruction set", str(asked.instructions), sets)
        features = environment_features(env)
        if asked.policy:
            _check_fits(asked.policy, features, name)
        settings = replace(
            asked,
            options=options,
            tasks=chosen,
            instructions=asked.instructions if sets else None,
            in_a_row=IN_A_ROW if getattr(env.unwrapped, "scene_per_task", False) else 1,
        )
        renderer = getattr(env.unwrapped, "renderer", None)
        return settings, features, _provenance(settings, renderer if isinstance(renderer, str) else None)
    finally:
        env.close()


def _provenance(settings: Settings, renderer: str | None) -> dict[str, Any]:
    """What a data set says of where it comes from; going on with other settings is refused by it."""
    s = settings
    kick = {"factor": KICK_FACTOR} if s.kick is None else {"scale": s.kick}
    turn = {} if s.policy_turn == TURN_STEPS else {"turn": s.policy_turn}  # older data sets go on
    learner = {"sha256": weights_sha256(s.policy), "share": s.policy_share, **turn} if s.policy else None
    return {
        "environment": s.environment,
        "options": s.options,
        "tasks": list(s.tasks),
        "seed": s.seed,
        "noise": s.noise,
        "kicks": {"rate": KICK_RATE, "steps": KICK_STEPS, **kick},
        "instructions": s.instructions,
        "successes_only": s.successes_only,
        **({"tail": s.tail} if s.tail else {}),  # data sets from before there were tails go on
        **({"learner": learner} if learner else {}),
        "renderer": renderer,
        "versions": {package: _version(package) for package in ("moe-robot", "mujoco", "gymnasium", "numpy")},
    }


def _check_fits(policy: Path, features: Features, environment: str) -> None:
    reason = load_policy(policy).features.mismatch(features)
    if reason:
        raise UserError(
            f"the policy {policy} does not fit {environment}: {reason}; give the options it was trained with "
            "(--env-options)"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _Intake:
    """Moves finished episodes from ``pending/`` into the data set, in schedule order, and commits now and then."""

    def __init__(self, writer: DatasetWriter, pending: Path, total: int) -> None:
        self._writer, self._pending, self._total = writer, pending, total
        self.waiting = _finished(pending)
        for slot in [slot for slot in self.waiting if slot < writer.episodes]:  # killed between commit and clean-up
            self.waiting.pop(slot).unlink()
        self._moved: list[Path] = []
        self._due = time.monotonic() + COMMIT_SECONDS

    def take(self, slots: Sequence[int]) -> None:
        """Note newly finished slots; append those whose turn it is."""
        self.waiting.update({slot: pending_path(self._pending, slot) for slot in slots})
        while self._writer.episodes < self._total and self._writer.episodes in self.waiting:
            path = self.waiting.pop(self._writer.episodes)
            self._writer.append(EpisodeRecord.load(path))
            self._moved.append(path)
        if time.monotonic() >= self._due:
            self.commit()

    def close(self) -> None:
        """Take in whatever is finished, also what was reported to nobody because of Ctrl-C."""
        self.take([slot for slot in _finished(self._pending) if slot >= self._writer.episodes])
        self.commit()

    def commit(self) -> None:
        """Make what was appended durable, then drop the files it came from."""
        started = time.monotonic()
        self._writer.commit()
        for path in self._moved:
            path.unlink()
        self._moved.clear()
        now = time.monotonic()
        self._due = now + max(COMMIT_SECONDS, (now - started) / COMMIT_SHARE)


def _finished(pending: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in pending.glob("*.parquet")}


def _sweep(pending: Path, writer: DatasetWriter) -> None:
    """Remove half-written files and, when nothing waits any more, the folder itself."""
    for path in pending.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)
    if not any(pending.iterdir()):
        pending.rmdir()
