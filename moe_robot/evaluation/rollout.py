"""The whole evaluation: check, roll out every task on its seeds, knock experts out, film, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from moe_robot.evaluation.checks import check_counts, check_instruction, check_knockouts, check_sensors
from moe_robot.evaluation.ensemble import Ensemble
from moe_robot.evaluation.episode import SHUFFLED, Actor, Cast, Episode, Job, named_task
from moe_robot.evaluation.journal import COMPLETE, Journal, clear_shares, finished_episodes, writing
from moe_robot.evaluation.results import Results, Setup
from moe_robot.evaluation.settle import device_of, facts, identity, settle
from moe_robot.evaluation.workers import Crew, Players, Solo, Take
from moe_robot.processes import Rank, share_out
from moe_robot.registry import checkpoint_directory, load_policy
from moe_robot.types import Policy, UserError

SEEDS_FROM = 100_000  # seeds below are for collecting, training and tuning; reported ones never choose anything

Progress = Callable[[Episode, int, int], None]
"""Called after each episode with the episode, how many of its pass are done, and how many there are."""


def evaluate(
    checkpoint: str | Path,
    environment: str | None = None,
    *,
    out: str | Path,
    tasks: str | None = None,
    episodes: int = 20,
    seed: int = SEEDS_FROM,
    instructions: str = "seen",
    instruction: str | None = None,
    workers: int = 1,
    envs: int = 1,
    device: str = "auto",
    video: int = 0,
    knockouts: Sequence[str] = (),
    sensors_off: Sequence[str] = (),
    knockout_episodes: int | None = None,
    environment_options: Mapping[str, Any] | None = None,
    policy_factory: Callable[[Path, str], Policy] = load_policy,
    progress: Progress | None = None,
    rank: Rank | None = None,
) -> Results:
    """Roll a checkpoint out and write ``report.json``, ``report.html``, ``episodes.jsonl`` and videos into ``out``.

    Episode i of every task has seed ``seed + i``. Outcomes depend on the job alone, not on ``workers`` or ``rank``;
    with ``envs`` also, in the last bits of the actions, on which jobs are answered together. When this is interrupted
    the finished episodes stay in ``out`` and the same call goes on with the rest.

    Args:
        checkpoint: a checkpoint folder or a training run.
        environment: a short name or Gymnasium id; None takes the one named in the checkpoint's ``train.json``.
        out: a folder, made if need be.
        tasks: comma-separated tasks and groups of the environment; None takes those that the checkpoint was trained on.
        episodes: per task.
        seed: the seed of the first episode of each task.
        instructions: an instruction set of the environment, or "shuffled": the sentence names another chosen task.
        instruction: a sentence that every episode gets in place of the environment's own; tasks are judged as ever.
        workers: processes; 1 plays in this one.
        envs: environments, spread over the ``workers``, whose observations one network in this process answers together
            (a policy that :class:`~moe_robot.types.PlansTogether`); 1 for a network in each worker, asked alone.
        device: "auto", "cpu" or "cuda".
        video: how many episodes of each task to film, failures first.
        knockouts: expert roles to switch off, or parts of the gate, each in a paired evaluation on the same seeds.
        sensors_off: sensors to switch off, likewise each in an evaluation of its own; "front+wrist" is both at once.
        knockout_episodes: how many of each task's episodes a knock-out or a missing sensor gets; None for all.
        environment_options: override those that the checkpoint was trained with.
        policy_factory: ``(checkpoint, device) -> Policy``; a picklable function when ``workers`` > 1.
        progress: called after each episode.
        rank: of several processes that call this with the same arguments and share it out; each returns all episodes
            when all is done, and one of them writes the report. A finished evaluation in ``out`` is then left as it is.

    Raises:
        UserError: an unknown name, a checkpoint that does not fit, an unwritable folder, a job that kills workers.
    """
    check_counts(
        episodes=episodes,
        workers=workers,
        envs=envs,
        knockout_episodes=1 if knockout_episodes is None else knockout_episodes,
    )
    check_instruction(instruction, instructions)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # llvmpipe's own threads only get in each other's way at 96 px
    folder, out = checkpoint_directory(checkpoint), Path(out)
    setup = settle(
        folder,
        environment,
        environment_options or {},
        tasks,
        episodes,
        seed,
        instructions,
        instruction,
        workers,
        device,
        envs,
        rank.world if rank else 1,
    )
    cast = Cast(
        setup.checkpoint,
        setup.environment,
        setup.environment_options,
        instructions,
        device_of(setup.device, rank),
        policy_factory,
        instruction,
    )
    jobs = [
        Job(task, seed + i, named_task(task, seed + i, setup.tasks) if instructions == SHUFFLED else None)
        for task in setup.tasks
        for i in range(episodes)
    ]
    paired = episodes if knockout_episodes is None else min(knockout_episodes, episodes)
    again = [job for job in jobs if job.seed < seed + paired]
    passes = Passes(
        jobs,
        {role: [replace(job, knockout=role) for job in again] for role in knockouts},
        {names: [replace(job, sensors_off=names) for job in again] for names in sensors_off},
    )
    actor = Actor(cast, jobs[0])  # also with many workers: what does not fit is said before they start
    try:
        check_knockouts(knockouts, actor.policy, actor.roles)
        check_sensors(sensors_off, actor.policy)
        setup = replace(setup, environment_facts=facts(actor.env), tiers=getattr(actor.env.unwrapped, "task_tiers", {}))
        with ExitStack() as stack:
            if envs > 1:
                players = stack.enter_context(Ensemble(actor, workers, envs))
            else:
                players = Solo(actor) if workers == 1 else stack.enter_context(Crew(cast, jobs[0], workers))
            if rank is None:
                return _finish(setup, out, passes, players, video, progress)
            return _share(setup, out, passes, players, video, progress, rank)
    finally:
        actor.close()


@dataclass(frozen=True)
class Passes:
    """The jobs of an evaluation: all of them, and some again with parts switched off."""

    whole: Sequence[Job]
    without_experts: Mapping[str, Sequence[Job]]
    without_sensors: Mapping[str, Sequence[Job]]

    def each(self) -> Iterator[Sequence[Job]]:
        """One pass after the other."""
        return chain([self.whole], self.without_experts.values(), self.without_sensors.values())

    def results(self, setup: Setup, out: Path, episodes: Mapping[Job, Episode], videos: dict[str, Episode]) -> Results:
        """What came of them."""

        def played(wanted: Sequence[Job]) -> tuple[Episode, ...]:
            return tuple(episodes[job] for job in wanted)

        return Results(
            setup,
            out,
            played(self.whole),
            {role: played(wanted) for role, wanted in self.without_experts.items()},
            {names: played(wanted) for names, wanted in self.without_sensors.items()},
            videos,
        )


def _finish(
    setup: Setup, out: Path, passes: Passes, players: Players, video: int, progress: Progress | None
) -> Results:
    """Play what nobody has played yet, film, and write the report."""
    from moe_robot.evaluation.report import write_report  # draws, so it loads cv2

    with Journal(out, identity(setup)) as journal:
        _remove_old_report(out)
        for wanted in passes.each():
            _fill(journal, players, wanted, progress)
        whole = [journal.episodes[job] for job in passes.whole]
        videos = _film(players, whole, video, out / "videos", alone=setup.envs == 1)
        results = passes.results(setup, out, journal.episodes, videos)
        write_report(results)
        journal.finish()
    return results


def _share(
    setup: Setup,
    out: Path,
    passes: Passes,
    players: Players,
    video: int,
    progress: Progress | None,
    rank: Rank,
) -> Results:
    """One rank's part; returns when the whole evaluation is finished, by whomever. See :func:`share_out`."""
    order = {job: i for i, job in enumerate(chain(*passes.each()))}

    def complete() -> dict[Job, Episode] | None:
        episodes = finished_episodes(out, identity(setup))
        if episodes is not None and not order.keys() <= episodes.keys():
            raise UserError(f"{out} holds a finished evaluation with fewer episodes: remove it or name another --out")
        return episodes

    def do(k: int) -> None:
        with Journal(out, identity(setup), (k, rank.world)) as journal:
            for wanted in passes.each():
                _fill(journal, players, [job for job in wanted if order[job] % rank.world == k], progress)

    def finish() -> None:
        _finish(setup, out, passes, players, video, None)

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    share_out(out, rank, do, lambda: complete() is not None, finish)
    clear_shares(out)  # again: whoever finished may have died before it had
    return passes.results(setup, out, complete() or {}, {})


def _remove_old_report(out: Path) -> None:
    """A folder holds one evaluation: an older report must not stand beside the episodes of this one."""
    for name in ("report.json", "report.html", COMPLETE):
        with writing(out / name):
            (out / name).unlink(missing_ok=True)


def _fill(journal: Journal, players: Players, jobs: Sequence[Job], progress: Progress | None) -> None:
    missing = [Take(job) for job in jobs if job not in journal.episodes]
    done = len(jobs) - len(missing)
    if progress:
        for i, job in enumerate(job for job in jobs if job in journal.episodes):
            progress(journal.episodes[job], i + 1, len(jobs))
    for episode in players.play(missing):
        journal.add(episode)
        done += 1
        if progress:
            progress(episode, done, len(jobs))


def _film(
    players: Players, episodes: Sequence[Episode], per_task: int, folder: Path, alone: bool
) -> dict[str, Episode]:
    """Play chosen episodes again with the camera running: a seed decides an episode, so it is the same one.

    The camera sees one at a time. Where they had not been played ``alone`` an episode may, rarely, go another way for
    the last bits of its actions; such a video is no video of it and is removed.
    """
    chosen: list[Episode] = []
    for task in dict.fromkeys(episode.job.task for episode in episodes):
        mine = [episode for episode in episodes if episode.job.task == task]
        chosen += sorted(mine, key=lambda episode: episode.success)[:per_task]
    if not chosen:
        return {}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob("*.mp4"), *folder.glob("*.png")):
            old.unlink()
    first = {episode.job: episode for episode in chosen}
    for again in players.play([Take(episode.job, folder) for episode in chosen]):
        if again != first[again.job]:
            if not alone:
                for file in folder.glob(f"{again.job.name}.*"):
                    file.unlink()
                del first[again.job]
                continue
            raise UserError(
                f"task {again.job.task} seed {again.job.seed} went another way when it was filmed: expected the same "
                "episode from the same seed; the environment or the policy is not deterministic, so leave --video away"
            )
    return {episode.job.name: episode for episode in sorted(first.values(), key=lambda episode: episode.success)}
