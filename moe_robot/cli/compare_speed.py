"""The speed columns of ``moe-robot compare``: all entries measured in one interleaved pass, kept in ``speed.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_robot.cli.compare_entries import Entry
from moe_robot.cli.compare_plan import Trial, preset_class, read_json, settings
from moe_robot.evaluation.journal import write_atomically
from moe_robot.evaluation.report import machine
from moe_robot.evaluation.results import versions
from moe_robot.registry import load_policy, make_environment, parse_options, weights_sha256
from moe_robot.types import UserError


def speed_of(entries: Sequence[Entry], trial: Trial, seconds: float) -> dict[str, Any]:
    """Times by label, from ``results/speed.json`` when it is of these entries, else measured and written there.

    One processor thread, as in training. ``chunk_*`` is a new action chunk for one observation; ``chunks_per_second``
    of a batch of 64; ``training_samples_per_second`` of whole optimiser steps of 64 samples.
    """
    path = trial.out / "results" / "speed.json"
    wanted = {entry.label: _identity(entry) for entry in entries}
    if path.is_file():
        found = read_json(path)
        if all(found["identity"].get(label) == one for label, one in wanted.items()):
            return found["entries"]
    load = os.getloadavg()[0]
    measured = _measure(entries, trial, seconds)
    speed = {
        "identity": wanted,
        "entries": measured,
        "seconds": seconds,
        "versions": versions(),
        "machine": machine(trial.device if trial.device != "auto" else "cpu", 1),
        "load": {"start": round(load, 2), "end": round(os.getloadavg()[0], 2)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(speed, indent=1) + "\n")
    return measured


def stored_speed(out: Path) -> dict[str, Any]:
    """What ``results/speed.json`` holds by label; nothing where it was not measured."""
    path = out / "results" / "speed.json"
    return read_json(path)["entries"] if path.is_file() else {}


def _identity(entry: Entry) -> dict[str, Any]:
    if entry.checkpoint is not None:
        return {"checkpoint_sha256": weights_sha256(entry.checkpoint)}
    return {"preset": entry.preset, "config": json.loads(json.dumps(settings(entry)))}


def _measure(entries: Sequence[Entry], trial: Trial, seconds: float) -> dict[str, Any]:
    import torch

    from moe_robot.cli.policy_speed import BATCH, Act, ActBatched, Learn, alternate, observations_of
    from moe_robot.training.train import resolve_device

    device = resolve_device(trial.device)
    env = make_environment(trial.environment, **trial.environment_options)
    try:
        observations = observations_of(env)
    finally:
        env.close()
    policies = {entry.label: fresh(entry, trial) for entry in entries}
    trained: dict[str, Any] = {label: p.to(device) for label, p in policies.items() if isinstance(p, torch.nn.Module)}
    torch.set_num_threads(1)
    one = alternate({label: Act(policy, observations[0]) for label, policy in policies.items()}, seconds)
    many = alternate({label: ActBatched(p, p.features, observations) for label, p in trained.items()}, seconds)
    step = alternate({label: Learn(p, p.features, observations) for label, p in trained.items()}, seconds)
    measured: dict[str, Any] = {}
    for label in policies:
        measured[label] = {
            "chunk_cpu_ms": {"p50": _ms(one[label].cpu), "p95": _ms(one[label].cpu_p95)},
            "chunk_wall_ms": {"p50": _ms(one[label].wall), "p95": _ms(one[label].wall_p95)},
            "calls": one[label].calls,
        }
        for name, times in (("chunks", many), ("training_samples", step)):  # a stranger's policy may only act
            found = times.get(label)
            measured[label][f"{name}_per_second"] = found and round(BATCH / found.wall, 1)
            measured[label][f"{name}_per_cpu_second"] = found and round(BATCH / found.cpu, 1)
    return measured


def fresh(entry: Entry, trial: Trial) -> Any:
    """The entry's policy before training, or as it is in its checkpoint.

    Raises:
        UserError: settings that make no policy.
    """
    if entry.checkpoint is not None:
        return load_policy(entry.checkpoint)
    given = parse_options(entry.config)
    policy_class = preset_class(entry.preset)
    dataset = _demonstrations(trial)
    try:
        return policy_class.from_preset(entry.preset, dataset.features, dataset.statistics, dataset.tasks, **given)
    except (TypeError, ValueError) as error:  # torch's word for a setting of the wrong kind
        raise UserError(f"entry {entry.label} makes no policy of its settings {given}: {error}") from error


_OPENED: dict[str, Any] = {}


def _demonstrations(trial: Trial) -> Any:
    """What every entry is trained on; features and statistics are the same for every horizon."""
    from moe_robot.data.mixture import open_data
    from moe_robot.data.selection import parse_rename

    assert trial.data is not None
    key = repr((trial.data, trial.data_sha256, trial.tasks, trial.selection))
    if key not in _OPENED:
        cameras = trial.selection["cameras"]
        _OPENED[key] = open_data(
            trial.data,
            1,
            tasks=None if trial.is_mixture else trial.tasks,
            episodes=trial.selection["episodes"],
            cameras=cameras.split(",") if cameras else None,
            rename=parse_rename(trial.selection["rename"]),
        )
    return _OPENED[key]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
