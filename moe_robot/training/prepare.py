"""From the options of a run to the data and the policy that it begins with. Whatever is wrong is refused here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_robot import registry
from moe_robot.data.loader import Dataset
from moe_robot.data.match import FeaturesDiffer, match
from moe_robot.data.mixture import Mixture, open_data
from moe_robot.data.selection import Split, parse_rename
from moe_robot.training.checkpoint import has_state
from moe_robot.training.config import TrainConfig
from moe_robot.types import UserError

FREE = {
    "out", "data", "resume", "steps", "minutes", "threads", "device", "save_every", "upcycle", "finetune",
    "stream", "keep", "expert_parallel",
}  # fmt: skip
"""Options that may change when a run is resumed."""


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Attributes:
        dataset: to train on.
        policy: fresh, upcycled from a dense one, or another's weights to go on with; on the CPU.
        preset: its name.
        probe: to measure on.
        probed: what to call the result: "validation", or "training_probe" where too few episodes are held out.
    """

    dataset: Dataset | Mixture
    policy: Any
    preset: str
    probe: Dataset | Mixture
    probed: str


def check(config: TrainConfig) -> None:
    """Refuse options that contradict each other or what is in the folder of the run (UserError)."""
    if (config.steps is None) == (config.minutes is None):
        raise UserError("give the length of training as either --steps N or --minutes M")
    length = config.steps if config.steps is not None else config.minutes
    if length is not None and length <= 0:
        raise UserError(f"the length of training is {length}, expected more than 0")
    if config.gate_rate < 0:
        raise UserError(f"gate_rate is {config.gate_rate}, expected 0 (gates stay as they begin) or more")
    for name in ("batch_size", "accumulate", "expert_parallel", "keep"):
        if getattr(config, name) < 1:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(config, name)}, expected at least 1")
    if config.finetune and (config.upcycle or config.config or config.no_text):
        raise UserError("--finetune goes on with a policy as it is: leave out --upcycle, --config and --no-text")
    if has_state(config.out) and not config.resume:
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")


def begin(config: TrainConfig) -> Beginning:
    """Open the demonstrations and make the policy."""
    overrides = registry.parse_options(config.config) | ({"text": "none"} if config.no_text else {})
    policy_class = _preset_class(config.preset)
    begun = _begun(config, overrides)
    horizon = begun.config.chunk if begun else policy_class.preset_horizon(config.preset, **overrides)
    dataset = _open(config, horizon, "train")
    if begun and (reason := begun.features.mismatch(dataset.features)):
        rows = match(begun.features, dataset.features)
        raise FeaturesDiffer(f"{config.upcycle or config.finetune} does not fit {config.data}: {reason}", rows)
    if begun and config.finetune:
        begun = begun.continued(dataset.features, dataset.tasks, _task_names(dataset))
    policy = begun or policy_class.from_preset(
        config.preset, dataset.features, dataset.statistics, dataset.tasks, _task_names(dataset), **overrides
    )
    preset = begun.config.preset if begun and config.finetune else config.preset
    return Beginning(dataset, policy, preset, *_probe_data(config, horizon, dataset))


def fingerprint(config: TrainConfig, data_hash: str) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run. Its length may grow."""
    fixed = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE}
    upcycled, finetuned = (registry.weights_sha256(of) if of else None for of in (config.upcycle, config.finetune))
    hashes = {"data_sha256": data_hash, "upcycled_sha256": upcycled, "finetuned_sha256": finetuned}
    return json.loads(json.dumps({**fixed, **hashes}))


def check_same_run(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or settings (UserError)."""
    for key, value in saved.items():
        if present.get(key) != value:
            raise UserError(
                f"cannot resume: {key} was {value!r} in the saved run and is {present.get(key)!r} now; use the same"
            )


def _preset_class(name: str) -> Any:
    presets = registry.presets()
    if name not in presets:
        raise registry.unknown("preset", name, presets)
    return presets[name]


def _begun(config: TrainConfig, overrides: Mapping[str, Any]) -> Any:
    """The policy whose weights the run begins with; None for a fresh one."""
    if config.upcycle:
        return _loaded(config.upcycle, "upcycled", "upcycled: expected a dense policy").upcycled(**overrides)
    return _loaded(config.finetune, "continued", "trained further") if config.finetune else None


def _loaded(checkpoint: Path, ability: str, what: str) -> Any:
    policy = registry.load_policy(checkpoint)
    if not hasattr(policy, ability):
        raise UserError(f"{checkpoint} holds a {type(policy).__name__}, which cannot be {what}")
    return policy


def _task_names(dataset: Any) -> tuple[str, ...]:
    """Names of the environment's tasks; none where the data set has only sentences."""
    names = dict.fromkeys(dataset.episodes.task)
    return () if set(names) == set(dataset.tasks) else tuple(names)


def _open(config: TrainConfig, horizon: int, split: Split) -> Dataset | Mixture:
    """The demonstrations as the options choose them."""
    return open_data(
        config.data,
        horizon,
        split,
        tasks=config.tasks.split(",") if config.tasks else None,
        episodes=config.episodes,
        cameras=config.cameras.split(",") if config.cameras else None,
        rename=parse_rename(config.rename),
        frames="stream" if config.stream else "cache",
    )


def _probe_data(config: TrainConfig, horizon: int, dataset: Any) -> tuple[Any, str]:
    """Held-out episodes to measure on, and what to call the result; training data where too few are held out."""
    try:
        held_out = _open(config, horizon, "validation")
    except UserError:
        return dataset, "training_probe"
    return (held_out, "validation") if len(held_out) >= config.batch_size else (dataset, "training_probe")
