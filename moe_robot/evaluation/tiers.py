"""The means that benchmarks of many tasks publish: over tasks, and over tiers of tasks of like difficulty.

A mean over tasks weighs every task alike, a mean over tiers every tier: five very hard tasks then count as much as 28
easy ones. Papers print one or the other and seldom say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_robot.evaluation.statistics import mean_of_tasks


def tier_summary(tiers: Mapping[str, Sequence[str]], outcomes: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """``tiers``, ``task_mean`` and ``tier_mean`` of a report: each a ``success_rate`` with ``ci95`` and its counts.

    Args:
        tiers: tier -> its tasks; those that were not played are left out, and so is a tier without any.
        outcomes: task -> the outcomes of its episodes.

    Returns:
        an empty ``tiers`` and two None when the environment has no tiers, or tasks beside them.
    """
    played = {tier: [task for task in tasks if task in outcomes] for tier, tasks in tiers.items()}
    played = {tier: tasks for tier, tasks in played.items() if tasks}
    told = {task for tasks in played.values() for task in tasks}
    if not told or told != set(outcomes):
        return {"tiers": {}, "task_mean": None, "tier_mean": None}

    def mean(weights: Mapping[str, float], **counts: int) -> dict[str, Any]:
        value, ci95 = mean_of_tasks([outcomes[task] for task in weights], list(weights.values()))
        return {**counts, "success_rate": value, "ci95": list(ci95)}

    def alike(tasks: Sequence[str], share: float = 1.0) -> dict[str, float]:
        return {task: share / len(tasks) for task in tasks}

    by_tier = {task: weight for tasks in played.values() for task, weight in alike(tasks, 1 / len(played)).items()}
    return {
        "tiers": {tier: mean(alike(tasks), tasks=len(tasks)) for tier, tasks in played.items()},
        "task_mean": mean(alike(list(outcomes)), tasks=len(outcomes)),
        "tier_mean": mean(by_tier, tiers=len(played)),
    }
