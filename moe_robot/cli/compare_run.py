"""One run of ``moe-robot compare``: train, evaluate, and write a result that makes doing it again needless."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.cli.compare_entries import TRAINING, Entry
from moe_robot.cli.train import is_trained
from moe_robot.data.durable import disk_errors, only_writer
from moe_robot.evaluation import Results, evaluate
from moe_robot.evaluation.compare import SCHEMA, letters
from moe_robot.evaluation.episode import Episode, sensor_names
from moe_robot.evaluation.journal import sha256, write_atomically
from moe_robot.registry import checkpoint_directory, load_policy, parse_options, presets, unknown
from moe_robot.types import Costed, SensorSwitches, UserError

if TYPE_CHECKING:
    from moe_robot.training.config import TrainConfig

NOTE = "run.json"
"""In a run's folder: whose run it is, and the load when it began."""
SHUFFLED = "instructions shuffled"


@dataclass(frozen=True)
class Trial:
    """What all runs of a comparison share.

    Attributes:
        data: folder of demonstrations; None when every entry is a checkpoint.
        data_sha256: their hash.
        environment: where policies are evaluated, made with ``environment_options``.
        tasks: to train and to evaluate on.
        steps: length of training, or None for ``minutes``.
        episodes: per task.
        sensors_off: each one evaluation more; likewise every role of ``knockouts``, and ``shuffled`` instructions.
        ablation_episodes: per task, for each of those.
    """

    out: Path
    data: Path | None
    data_sha256: str | None
    environment: str
    environment_options: Mapping[str, Any]
    tasks: tuple[str, ...]
    steps: int | None
    minutes: float | None
    episodes: int
    eval_seed: int
    sensors_off: tuple[str, ...]
    knockouts: tuple[str, ...]
    shuffled: bool
    ablation_episodes: int
    threads: int
    workers: int
    device: str


Stage = Callable[[str, float], None]
"""Called with what a run is doing and how much of that is done, in [0, 1]."""


@dataclass(frozen=True)
class Planned:
    """A run to be done: one entry with one training seed."""

    entry: Entry
    seed: int
    trial: Trial

    @property
    def name(self) -> str:
        """Of its folder in ``runs`` and its file in ``results``."""
        return f"{self.entry.label}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it is trained and evaluated."""
        return self.trial.out / "runs" / self.name

    @property
    def result_path(self) -> Path:
        """Where its result is kept."""
        return self.trial.out / "results" / f"{self.name}.json"

    def train_config(self) -> TrainConfig:
        """The options of its training."""
        from moe_robot.training.config import TrainConfig

        trial = self.trial
        assert trial.data is not None
        return TrainConfig(
            data=trial.data,
            out=self.folder,
            preset=self.entry.preset,
            steps=trial.steps,
            minutes=trial.minutes,
            seed=self.seed,
            resume=(self.folder / "state.pt").exists(),
            tasks=",".join(trial.tasks),
            threads=trial.threads,
            device=trial.device,
            config=self.entry.config,
            **self.entry.training,
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the outcome. Two results with the same one are the same, whoever ran them."""
        trial, entry = self.trial, self.entry
        shared = {
            "seed": self.seed,
            "tasks": list(trial.tasks),
            "episodes": trial.episodes,
            "eval_seed": trial.eval_seed,
            "environment": trial.environment,
            "environment_options": dict(trial.environment_options),
        }
        if entry.checkpoint is not None:
            return shared | {"checkpoint_sha256": sha256(checkpoint_directory(entry.checkpoint) / "model.safetensors")}
        config = self.train_config()
        identity = shared | {
            "preset": entry.preset,
            "config": settings(entry),
            "training": {name: getattr(config, name) for name in ("steps", "minutes", *TRAINING)},
            "data_sha256": trial.data_sha256,
        }
        return json.loads(json.dumps(identity))  # as it will be read back

    def claim(self, stored: Mapping[str, Any], path: Path) -> None:
        """Refuse what belongs to another run of this name.

        A setting that only one of the two knows does not count (a later version may have added it), unless this
        entry names it.
        """
        given = parse_options(self.entry.config)
        for key, (theirs, mine) in _differences(stored, self.identity, given).items():
            raise UserError(
                f"{path} is of another run: {key} was {theirs!r}, now it is {mine!r}; give the same, or choose another "
                "label or --out"
            )

    def result(self) -> dict[str, Any] | None:
        """The finished result, or None when there is none.

        Raises:
            UserError: it is of a run with another identity.
        """
        if not self.result_path.is_file():
            return None
        result = read_json(self.result_path)
        self.claim(result["identity"], self.result_path)
        return result

    def checkpoint(self) -> Path | None:
        """The trained policy, or None where it is not on this machine."""
        return self.entry.checkpoint or (self.folder / "checkpoint" if is_trained(self.folder) else None)

    def missing_ablations(self, result: Mapping[str, Any]) -> list[str]:
        """What the trial switches off and this result was not yet asked for."""
        asked, wanted = result["ablations_asked"], self.trial.ablation_episodes
        return [what for what in asked_ablations(self.trial) if asked.get(what, 0) < wanted]

    def is_finished(self) -> bool:
        """Whether there is nothing left to do (or nothing that can be done here).

        Raises:
            UserError: there is a result of a run with another identity.
        """
        result = self.result()
        return result is not None and (not self.missing_ablations(result) or self.checkpoint() is None)


def settings(entry: Entry) -> dict[str, Any]:
    """The policy's settings after defaults, where its class tells them; else those that were given."""
    given = parse_options(entry.config)
    tell = getattr(preset_class(entry.preset), "preset_settings", None)
    return dict(tell(entry.preset, **given)) if tell else given


def preset_class(name: str) -> Any:
    """The policy class of a preset."""
    found = presets()
    if name not in found:
        raise unknown("preset", name, found)
    return found[name]


def asked_ablations(trial: Trial) -> list[str]:
    """Names of all ablations of the trial."""
    names = [*(f"sensors {names}" for names in trial.sensors_off), *(f"experts {role}" for role in trial.knockouts)]
    return [*names, SHUFFLED] if trial.shuffled else names


def read_json(path: Path) -> dict[str, Any]:
    """A result or note that this program wrote.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): remove it, the run is then done again") from None


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
    sensors, roles = _can_be_switched_off(planned.trial, checkpoint)
    results = _evaluate(planned, checkpoint, "evaluation", stage, sensors_off=sensors, knockouts=roles)
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
        sensors, roles = _can_be_switched_off(trial, checkpoint)
        results = _evaluate(
            planned,
            checkpoint,
            "without",
            stage,
            episodes=trial.ablation_episodes,
            sensors_off=[names for names in sensors if f"sensors {names}" in missing],
            knockouts=[role for role in roles if f"experts {role}" in missing],
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
        off = episode.job.sensors_off or episode.job.knockout
        stage(f"without {off}" if off else name.replace("evaluation", "evaluating"), done / total)

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
    """Those of the trial's sensors and expert roles that this policy has: a dense one has no experts."""
    sensors = []
    if trial.sensors_off:
        policy = load_policy(checkpoint)
        has = policy.sensors if isinstance(policy, SensorSwitches) else ()
        sensors = [names for names in trial.sensors_off if set(sensor_names(names)) < set(has)]
    final = (_training(checkpoint).get("routing") or {}).get("final") or {}
    roles = {role for shares in final.values() for role in shares}
    return sensors, [role for role in trial.knockouts if role in roles]


def _ablations(results: Results) -> dict[str, dict[str, str]]:
    sensors = {f"sensors {names}": letters(episodes) for names, episodes in results.sensors_off.items()}
    return sensors | {f"experts {role}": letters(episodes) for role, episodes in results.knockouts.items()}


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


def _differences(
    stored: Mapping[str, Any], present: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Key -> its two values, where they differ."""
    found = {}
    for key in {**stored, **present}:
        theirs, mine = stored.get(key), present.get(key)
        if key == "config" and isinstance(theirs, Mapping) and isinstance(mine, Mapping):
            names = (theirs.keys() & mine.keys()) | given.keys()
            found |= {name: (theirs.get(name), mine.get(name)) for name in names if theirs.get(name) != mine.get(name)}
        elif isinstance(theirs, Mapping) and isinstance(mine, Mapping):
            found |= _differences(theirs, mine, {})
        elif theirs != mine:
            found[key] = theirs, mine
    return found
