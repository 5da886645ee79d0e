"""Turns results into ``report.json`` (a versioned schema) and, through :mod:`.page`, ``report.html``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from moe_robot.evaluation.episode import Episode
from moe_robot.evaluation.journal import write_atomically
from moe_robot.evaluation.page import page
from moe_robot.evaluation.results import Results, versions
from moe_robot.evaluation.statistics import Rate, paired_difference, quantiles
from moe_robot.evaluation.tiers import tier_summary

SCHEMA = 3


def write_report(results: Results) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` into ``results.out``, each atomically. Returns what is in the JSON."""
    report = report_json(results)
    write_atomically(results.out / "report.html", page(report))
    write_atomically(results.out / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def report_json(results: Results) -> dict[str, Any]:
    """The report as a plain dict, schema 3. Every ``success_rate`` stands beside its Wilson ``ci95``.

    ``machine`` says how it was played: ``workers`` processes in each of ``ranks``, ``envs`` answered together in each.
    ``tasks[name]["outcomes"]`` is aligned with its ``seeds``, so that two reports on the same seeds can be compared
    pair by pair. ``latency_ms`` is of the calls in which the network ran; ``control_step_ms`` of whole control steps,
    policy and simulation. The ``difference`` of a row of ``knockouts`` (keys: roles and parts of the gate) or
    ``sensors_off`` is the whole policy's rate minus that without these. ``instruction`` is the one sentence of every
    episode, or null where the environment chose. ``tiers``, ``task_mean`` and ``tier_mean`` are those of
    :func:`.tiers.tier_summary`; ``overall`` weighs every episode alike. Schema 1 had no ``sensors_off``, 2 no tiers.
    """
    setup, episodes = results.setup, results.episodes
    routings = [episode.routing for episode in episodes if episode.routing is not None]
    step0 = setup.training.get("routing", {}).get("step0")
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "checkpoint": str(setup.checkpoint),
        "checkpoint_sha256": setup.checkpoint_sha256,
        "preset": setup.preset,
        "env": setup.environment,
        "env_options": dict(setup.environment_options),
        "environment": dict(setup.environment_facts),
        "renderer": setup.environment_facts.get("renderer"),
        "instructions": setup.instructions,
        "instruction": setup.instruction,
        "first_seed": setup.seed,
        "versions": versions(),
        "tasks": {
            task: _summary([episode for episode in episodes if episode.job.task == task]) for task in setup.tasks
        },
        "overall": _summary(episodes),
        **tier_summary(
            setup.tiers,
            {task: [e.success for e in episodes if e.job.task == task] for task in setup.tasks},
        ),
        "latency_ms": quantiles([ms for episode in episodes for ms in episode.latency_ms]),
        "control_step_ms": quantiles([ms for episode in episodes for ms in episode.step_ms]),
        "routing": reduce(add, routings).share() if routings else None,
        "knockouts": {role: _without(episodes, without) for role, without in results.knockouts.items()},
        "sensors_off": {names: _without(episodes, without) for names, without in results.sensors_off.items()},
        "training": dict(setup.training),
        "machine": {**machine(setup.device, setup.workers), "envs": setup.envs, "ranks": setup.ranks},
        "videos": [
            {
                "name": name,
                "task": episode.job.task,
                "seed": episode.job.seed,
                "sentence": episode.sentence,
                "verdict": episode.verdict,
            }
            for name, episode in results.videos.items()
        ],
    }
    if step0 is not None:
        report["routing_step0"] = step0
    return json.loads(json.dumps(report))  # what a reader of the file will get: tuples are lists


def _summary(episodes: Sequence[Episode]) -> dict[str, Any]:
    rate = Rate.of([episode.success for episode in episodes])
    summary: dict[str, Any] = {
        "episodes": rate.n,
        "successes": rate.successes,
        "success_rate": rate.value,
        "ci95": list(rate.ci95),
        "wrong": sum(episode.wrong for episode in episodes),
        "timeouts": sum(episode.timeout for episode in episodes),
        "episode_steps": sum(episode.steps for episode in episodes) / rate.n,
        "seeds": [episode.job.seed for episode in episodes],
        "outcomes": [int(episode.success) for episode in episodes],
    }
    if all(episode.named_success is not None for episode in episodes):
        named = Rate.of([bool(episode.named_success) for episode in episodes])
        summary |= {"named_success": named.value, "named_ci95": list(named.ci95)}
    return summary


def _without(whole: Sequence[Episode], without: Sequence[Episode]) -> dict[str, Any]:
    rate = Rate.of([episode.success for episode in without])
    played = {(episode.job.task, episode.job.seed) for episode in without}
    same = [episode for episode in whole if (episode.job.task, episode.job.seed) in played]  # in the same order
    paired = paired_difference(
        [episode.success for episode in same],
        [episode.success for episode in without],
        strata=[episode.job.task for episode in same],
    )
    return {
        "episodes": rate.n,
        "successes": rate.successes,
        "success_rate": rate.value,
        "ci95": list(rate.ci95),
        "difference": paired.difference,
        "difference_ci95": list(paired.ci95),
        "mcnemar_p": paired.p_value,
    }


def machine(device: str, workers: int) -> Mapping[str, Any]:
    """What the times were measured on: CPU model, cores this process may use, load over the last minute, GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "device": device,
        "gpu": gpu,
        "workers": workers,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
