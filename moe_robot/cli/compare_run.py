"""One run of ``moe-robot compare``: train, evaluate, and write a result that makes doing it again needless."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moe_robot.cli.compare_plan import SHUFFLED, Planned, Trial, asked_ablations, read_json
from moe_robot.cli.train import is_trained
from moe_robot.data.durable import disk_errors, only_writer
from moe_robot.evaluation import Results, evaluate
from moe_robot.evaluation.compare import SCHEMA, letters
from moe_robot.evaluation.episode import Episode, sensor_names
from moe_robot.evaluation.journal import write_atomically
from moe_robot.evaluation.knockouts import knockout_key, without
from moe_robot.registry import checkpoint_directory, load_policy
from moe_robot.types import Costed, SensorSwitches, TellsKnockouts

NOTE = "run.json"
"""In a run's folder: whose run it is, and the load when it began."""

Stage = Callable[[str, float], None]
"""Called with what a run is doing and how much of that is done, in [0, 1]."""


def do(planned: Planned, stage: Stage) -> dict[str, Any]:
    """Train and evaluate what is not done yet, and write the result. Interrupted at any point, it goes on from there.

    Raises:
        UserError: the folder holds another run, another process works on it, or training or evaluation refuse.
    """
    folder = planned.folder
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        planned.result_path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        note = folder / NOTE
        if note.is_file():
            planned.claim(read_json(note)["identity"], note)
        else:
            write_atomically(note, json.dumps({"identity": planned.identity, "load": _load()}))
        result = planned.result() or _first_result(planned, read_json(note)["load"], stage)
        return _with_missing_ablations(planned, result, stage)


def _first_result(planned: Planned, load: float, stage: Stage) -> dict[str, Any]:
    checkpoint = planned.entry.checkpoint or _trained(planned, stage)
    sensors, knockouts = _can_be_switched_off(planned.trial, checkpoint)
    results = _evaluate(planned, checkpoint, "evaluation", stage, sensors_off=sensors, knockouts=knockouts)
    report = read_json(results.out / "report.json")
    result = {
        "schema": SCHEMA,
        "label": planned.entry.label,
        "line": planned.entry.line,
        "identity": planned.identity,
        "given": list(planned.entry.config),
        "checkpoint_sha256": report["checkpoint_sha256"],
        "training": _training(checkpoint),
        "outcomes": letters(results.episodes),
        "ablations": _ablations(results),
        "ablations_asked": {
            what: planned.trial.ablation_episodes for what in asked_ablations(planned.trial) if what != SHUFFLED
        },
        **{key: report[key] for key in ("latency_ms", "control_step_ms", "routing", "versions", "machine")},
        "cost": _cost(checkpoint),
        "load": {"start": load, "end": _load()},
    }
    _write(planned, result)
    return result


def _with_missing_ablations(planned: Planned, result: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """What was not asked for when the run was done, as long as its checkpoint is here."""
    trial, checkpoint = planned.trial, planned.checkpoint()
    missing = planned.missing_ablations(result)
    if not missing or checkpoint is None:
        return result
    found: dict[str, Any] = {}
    if any(what != SHUFFLED for what in missing):
        sensors, knockouts = _can_be_switched_off(trial, checkpoint)
        results = _evaluate(
            planned,
            checkpoint,
            "without",
            stage,
            episodes=trial.ablation_episodes,
            sensors_off=[names for names in sensors if f"sensors {names}" in missing],
            knockouts=[name for name in knockouts if knockout_key(name) in missing],
        )
        found |= _ablations(results)
    if SHUFFLED in missing:
        results = _evaluate(
            planned, checkpoint, "shuffled", stage, episodes=trial.ablation_episodes, instructions="shuffled"
        )
        found[SHUFFLED] = letters(results.episodes)
    asked = {**result["ablations_asked"], **dict.fromkeys(missing, trial.ablation_episodes)}
    result = {**result, "ablations": {**result["ablations"], **found}, "ablations_asked": asked}
    _write(planned, result)
    return result


def _trained(planned: Planned, stage: Stage) -> Path:
    from moe_robot.training.train import train

    if not is_trained(planned.folder):
        train(planned.train_config(), lambda now: stage("training", now.fraction))
    return planned.folder / "checkpoint"


def _evaluate(planned: Planned, checkpoint: Path, name: str, stage: Stage, **more: Any) -> Results:
    trial = planned.trial

    def tell(episode: Episode, done: int, total: int) -> None:
        stage(without(episode.job) or name.replace("evaluation", "evaluating"), done / total)

    return evaluate(
        checkpoint,
        trial.environment,
        out=planned.folder / name,
        tasks=",".join(trial.tasks),
        seed=trial.eval_seed,
        workers=trial.workers,
        device=trial.device,
        knockout_episodes=trial.ablation_episodes,
        environment_options=trial.environment_options,
        progress=tell,
        **{"episodes": trial.episodes, **more},
    )


def _can_be_switched_off(trial: Trial, checkpoint: Path) -> tuple[list[str], list[str]]:
    """Those of the trial's sensors and knock-outs that this policy has: a dense one has no experts."""
    if not (trial.sensors_off or trial.knockouts):
        return [], []
    policy = load_policy(checkpoint)
    has = policy.sensors if isinstance(policy, SensorSwitches) else ()
    sensors = [names for names in trial.sensors_off if set(sensor_names(names)) < set(has)]
    if isinstance(policy, TellsKnockouts):
        return sensors, [name for name in trial.knockouts if name in policy.knockouts]
    final = (_training(checkpoint).get("routing") or {}).get("final") or {}
    roles = {role for shares in final.values() for role in shares}
    return sensors, [name for name in trial.knockouts if name in roles]


def _ablations(results: Results) -> dict[str, dict[str, str]]:
    sensors = {f"sensors {names}": letters(episodes) for names, episodes in results.sensors_off.items()}
    return sensors | {knockout_key(name): letters(episodes) for name, episodes in results.knockouts.items()}


def _training(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint tells of its training, without what the identity tells already."""
    path = checkpoint_directory(checkpoint) / "train.json"
    record = read_json(path) if path.is_file() else {}
    record = {key: value for key, value in record.items() if key not in {"tasks", "environment", "environment_options"}}
    if record.get("minutes"):
        record["samples_per_second"] = record["samples"] / (60 * record["minutes"])
    return record


def _cost(checkpoint: Path) -> dict[str, Any] | None:
    policy = load_policy(checkpoint)
    if not isinstance(policy, Costed):
        return None
    cost = policy.cost()
    return {
        "total_parameters": cost.total_parameters,
        "active_parameters": cost.active_parameters,
        "frozen_parameters": cost.frozen_parameters,
        "flops": dict(cost.flops),
    }


def _write(planned: Planned, result: Mapping[str, Any]) -> None:
    write_atomically(planned.result_path, json.dumps(_rounded(result), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """The same with numbers of six digits, which keeps the files small."""
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _load() -> float:
    return round(os.getloadavg()[0], 2)
