"""What ``moe-robot compare`` has to do: its runs, what decides the outcome of each, and which of them are finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.cli.compare_entries import TRAINING, Entry
from moe_robot.cli.train import is_trained
from moe_robot.evaluation.knockouts import knockout_key
from moe_robot.registry import checkpoint_directory, parse_options, presets, unknown, weights_sha256
from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.training.config import TrainConfig

SHUFFLED = "instructions shuffled"


@dataclass(frozen=True)
class Trial:
    """What all runs of a comparison share.

    Attributes:
        data: the demonstrations; None when every entry is a checkpoint.
        data_sha256: their hash.
        is_mixture: whether they are a YAML file, which says itself what to train on.
        selection: what of them to train on, besides tasks: `episodes`, `cameras`, `rename`, as `train` takes them.
        environment: where policies are evaluated, made with ``environment_options``.
        tasks: to train and to evaluate on.
        steps: length of training, or None for ``minutes``.
        episodes: per task.
        sensors_off: each one evaluation more; likewise each of ``knockouts`` (roles, parts of the gate), and
            ``shuffled`` instructions.
        ablation_episodes: per task, for each of those.
    """

    out: Path
    data: Path | None
    data_sha256: str | None
    is_mixture: bool
    selection: Mapping[str, Any]
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
        from moe_robot.training.checkpoint import has_state
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
            resume=has_state(self.folder),
            tasks=None if trial.is_mixture else ",".join(trial.tasks),
            **trial.selection,
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
            return shared | {"checkpoint_sha256": weights_sha256(entry.checkpoint)}
        config = self.train_config()
        identity = shared | {
            "preset": entry.preset,
            "config": settings(entry),
            "training": {name: getattr(config, name) for name in ("steps", "minutes", "precision", *TRAINING)},
            "data_sha256": trial.data_sha256,
        }
        if any(trial.selection.values()):
            identity["selection"] = dict(trial.selection)
        return json.loads(json.dumps(identity))  # as it will be read back

    def claim(self, stored: Mapping[str, Any], path: Path) -> None:
        """Refuse what belongs to another run of this name.

        A setting that only one of the two knows does not count (a later version may have added it), unless this
        entry names it.
        """
        given = {*parse_options(self.entry.config), *self.entry.training}
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
    names = [*(f"sensors {names}" for names in trial.sensors_off), *map(knockout_key, trial.knockouts)]
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


def planned(entries: Sequence[Entry], seeds: Sequence[int], trial: Trial) -> list[Planned]:
    """All runs, seed by seed, so that an unfinished comparison has seen every entry. A checkpoint has its own seed."""
    runs = [Planned(entry, seed, trial) for seed in seeds for entry in entries if entry.checkpoint is None]
    for entry in entries:
        if entry.checkpoint is not None:
            record = checkpoint_directory(entry.checkpoint) / "train.json"
            runs.append(Planned(entry, read_json(record).get("seed", 0) if record.is_file() else 0, trial))
    names = [one.name for one in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"there are two runs {name}: give the checkpoint another label")
    return runs


def share(runs: Sequence[Planned], shard: str | None) -> Sequence[Planned]:
    """The runs of shard ``I/N``, out of all runs, finished or not: so shards never meet, whenever they start."""
    if shard is None:
        return runs
    first, slash, step = shard.partition("/")
    if not (slash and first.isdecimal() and step.isdecimal() and int(first) < int(step)):
        raise UserError(f"--shard {shard!r}: expected I/N with I from 0 to N - 1, for example 0/2 and 1/2")
    return runs[int(first) :: int(step)]


def _differences(stored: Mapping[str, Any], present: Mapping[str, Any], given: Set[str]) -> dict[str, tuple[Any, Any]]:
    """Key -> its two values, where they differ."""
    found = {}
    for key in {**stored, **present}:
        theirs, mine = stored.get(key), present.get(key)
        if key in {"config", "training"} and isinstance(theirs, Mapping) and isinstance(mine, Mapping):
            names = [name for name in {**theirs, **mine} if name in given or (name in theirs and name in mine)]
            found |= {name: (theirs.get(name), mine.get(name)) for name in names if theirs.get(name) != mine.get(name)}
        elif isinstance(theirs, Mapping) and isinstance(mine, Mapping):
            found |= _differences(theirs, mine, given)
        elif theirs != mine:
            found[key] = theirs, mine
    return found
