"""The whole evaluation: check, roll out every task on its seeds, knock experts out, film, report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_robot.evaluation.checks import (
    check_counts,
    check_instruction,
    check_instructions,
    check_knockouts,
    check_sensors,
)
from moe_robot.evaluation.episode import SHUFFLED, Actor, Cast, Episode, Job, named_task
from moe_robot.evaluation.journal import COMPLETE, Journal, sha256, writing
from moe_robot.evaluation.results import Results, Setup, versions
from moe_robot.evaluation.workers import Crew, Players, Solo, Take
from moe_robot.registry import (
    checkpoint_directory,
    environment_features,
    environment_id,
    load_policy,
    make_environment,
    select_tasks,
)
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
    device: str = "auto",
    video: int = 0,
    knockouts: Sequence[str] = (),
    sensors_off: Sequence[str] = (),
    knockout_episodes: int | None = None,
    environment_options: Mapping[str, Any] | None = None,
    policy_factory: Callable[[Path, str], Policy] = load_policy,
    progress: Progress | None = None,
) -> Results:
    """Roll a checkpoint out and write ``report.json``, ``report.html``, ``episodes.jsonl`` and videos into ``out``.

    Episode i of every task has seed ``seed + i``. Outcomes depend on the job alone, not on ``workers``. When this is
    interrupted the finished episodes stay in ``out`` and the same call goes on with the rest.

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
        device: "auto", "cpu" or "cuda".
        video: how many episodes of each task to film, failures first.
        knockouts: expert roles to switch off, or parts of the gate, each in a paired evaluation on the same seeds.
        sensors_off: sensors to switch off, likewise each in an evaluation of its own; "front+wrist" is both at once.
        knockout_episodes: how many of each task's episodes a knock-out or a missing sensor gets; None for all.
        environment_options: override those that the checkpoint was trained with.
        policy_factory: ``(checkpoint, device) -> Policy``; a picklable function when ``workers`` > 1.
        progress: called after each episode.

    Raises:
        UserError: an unknown name, a checkpoint that does not fit, an unwritable folder, a job that kills workers.
    """
    from moe_robot.evaluation.report import write_report  # draws, so it loads cv2

    check_counts(
        episodes=episodes, workers=workers, knockout_episodes=1 if knockout_episodes is None else knockout_episodes
    )
    check_instruction(instruction, instructions)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # llvmpipe's own threads only get in each other's way at 96 px
    folder, out = checkpoint_directory(checkpoint), Path(out)
    setup = _setup(
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
    )
    cast = Cast(
        setup.checkpoint,
        setup.environment,
        setup.environment_options,
        instructions,
        setup.device,
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
    without_experts = {role: [replace(job, knockout=role) for job in again] for role in knockouts}
    without_sensors = {names: [replace(job, sensors_off=names) for job in again] for names in sensors_off}
    actor = Actor(cast, jobs[0])  # also with many workers: what does not fit is said before they start
    try:
        check_knockouts(knockouts, actor.policy, actor.roles)
        check_sensors(sensors_off, actor.policy)
        setup = replace(
            setup, environment_facts=_facts(actor.env), tiers=getattr(actor.env.unwrapped, "task_tiers", {})
        )
        with ExitStack() as stack:
            journal = stack.enter_context(Journal(out, _identity(setup)))
            _remove_old_report(out)
            players = Solo(actor) if workers == 1 else stack.enter_context(Crew(cast, jobs[0], workers))
            for wanted in (jobs, *without_experts.values(), *without_sensors.values()):
                _fill(journal, players, wanted, progress)

            def played(wanted: Sequence[Job]) -> tuple[Episode, ...]:
                return tuple(journal.episodes[job] for job in wanted)

            results = Results(
                setup,
                out,
                played(jobs),
                {role: played(wanted) for role, wanted in without_experts.items()},
                {names: played(wanted) for names, wanted in without_sensors.items()},
                _film(players, played(jobs), video, out / "videos"),
            )
            write_report(results)
            journal.finish()
    finally:
        actor.close()
    return results


def _setup(
    folder: Path,
    environment: str | None,
    options: Mapping[str, Any],
    tasks: str | None,
    episodes: int,
    seed: int,
    instructions: str,
    instruction: str | None,
    workers: int,
    device: str,
) -> Setup:
    training = _json(folder / "train.json") if (folder / "train.json").is_file() else {}
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"no weights at {weights}: expected model.safetensors beside config.json; save the policy again"
        )
    name = environment or training.get("environment")
    if name is None:
        raise UserError(f"no environment named, and {folder} has no train.json that names one: give --env")
    env_id = environment_id(name)
    trained_here = training.get("environment") and environment_id(training["environment"]) == env_id
    made_with = {**((training.get("environment_options") or {}) if trained_here else {}), **options}
    if tasks is None:
        tasks = ",".join((training.get("tasks") or ()) if trained_here else ()) or "all"
    env = make_environment(env_id, **made_with)
    try:
        chosen = select_tasks(env, tasks)
        check_instructions(env, env_id, instructions, chosen)
    finally:
        env.close()
    return Setup(
        instruction=instruction,
        checkpoint=folder,
        checkpoint_sha256=sha256(weights),
        preset=training.get("preset") or _json(folder / "config.json").get("preset"),
        environment=env_id,
        environment_options=made_with,
        environment_facts={},
        tasks=chosen,
        episodes=episodes,
        seed=seed,
        instructions=instructions,
        device=_device(device),
        workers=workers,
        training=training,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def _facts(env: Any) -> dict[str, Any]:
    """What the environment tells of itself; a stranger's may tell nothing but its rate."""
    inner = env.unwrapped
    facts: dict[str, Any] = {"control_hz": environment_features(env).fps}
    for name in ("objects", "control", "renderer"):
        if isinstance(value := getattr(inner, name, None), str | int | float):
            facts[name] = value
    if isinstance(spec_limit := getattr(env.spec, "max_episode_steps", None), int):
        facts["time_limit_s"] = spec_limit / facts["control_hz"]
    return facts


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device} is not here: torch {torch.__version__} sees no GPU; use --device cpu or auto")
    return device


def _identity(setup: Setup) -> dict[str, Any]:
    return {
        "checkpoint": setup.checkpoint_sha256,
        "environment": setup.environment,
        "environment options": dict(setup.environment_options),
        "instructions": setup.instructions,
        "tasks": setup.tasks if setup.instructions == SHUFFLED else None,  # they decide which one is named
        "device": setup.device,
        "versions": versions(),
        **({} if setup.instruction is None else {"instruction": setup.instruction}),  # older journals go on
    }


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


def _film(players: Players, episodes: Sequence[Episode], per_task: int, folder: Path) -> dict[str, Episode]:
    """Play chosen episodes again with the camera running: a seed decides an episode, so it is the same one."""
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
            raise UserError(
                f"task {again.job.task} seed {again.job.seed} went another way when it was filmed: expected the same "
                "episode from the same seed; the environment or the policy is not deterministic, so leave --video away"
            )
    return {episode.job.name: episode for episode in sorted(chosen, key=lambda episode: episode.success)}
