"""Says what a checkpoint is: preset, features, parameters, text encoder, training record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_robot.registry import load_policy, weights_sha256
from moe_robot.types import Cost, Costed, UserError


def describe(folder: Path) -> dict[str, Any]:
    """What a checkpoint is, as a plain dict: the policy is loaded, so what is said here also works."""

    try:
        policy = load_policy(folder)
        raw = json.loads((folder / "config.json").read_text())
        digest = weights_sha256(folder)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {folder}: {error.strerror or error} ({error.filename})") from error
    config, cost = raw.get("config", {}), _cost(policy)
    return {
        "checkpoint": str(folder),
        "sha256": digest,
        "policy": raw["policy"],
        "preset": config.get("preset", raw.get("preset")),
        "parameters": _parameters(policy, cost),
        "flops": None if cost is None else {**cost.flops},
        "text_encoder": config.get("text"),
        "features": policy.features.to_json(),
        "config": config,
        "training": training_record(folder),
    }


def training_record(folder: Path) -> dict[str, Any] | None:
    """``train.json`` of a checkpoint, or None where it has none."""
    path = folder / "train.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; copy the checkpoint again or remove the file") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is no training record: expected a JSON object")
    return record


def _cost(policy: Any) -> Cost | None:
    return policy.cost() if isinstance(policy, Costed) else None


def _parameters(policy: Any, cost: Cost | None) -> dict[str, int] | None:
    """All parameters, those that one token can meet, those of experts and gates; None for what is no torch module."""
    from torch import nn

    from moe_robot.moe import MoEFeedForward

    if not isinstance(policy, nn.Module):
        return None
    layers = [module for module in policy.modules() if isinstance(module, MoEFeedForward)]
    count = {"total": sum(p.numel() for p in policy.parameters())}
    if cost is not None:
        count["active"] = cost.active_parameters
        count |= {"frozen": cost.frozen_parameters} if cost.frozen_parameters else {}
    if layers:
        count["experts"] = sum(p.numel() for layer in layers for p in layer.experts.parameters())
        count["gates"] = sum(p.numel() for layer in layers for p in layer.router.parameters())
    return count


def print_description(description: Mapping[str, Any]) -> None:
    """A table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    features, training, config = description["features"], description["training"] or {}, description["config"]
    cameras = ", ".join(f"{name} {height}x{width}" for name, (height, width) in features["cameras"].items())
    table = Table(
        title=f"{description['preset'] or description['policy']}: {description['checkpoint']}", show_header=False
    )
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    rows: dict[str, Any] = {
        "weights (sha256)": description["sha256"],
        "parameters": ", ".join(f"{name} {n:,}" for name, n in (description["parameters"] or {}).items()),
        "a new chunk": _flops(description["flops"]),
        "cameras": cameras,
        "state": f"{len(features['state_names'])}: {', '.join(features['state_names'])}",
        "action": f"{len(features['action_names'])}: {', '.join(features['action_names'])}",
        "control": f"{features['fps']} Hz, chunks of {config['chunk']}"
        if "chunk" in config
        else f"{features['fps']} Hz",
        "text encoder": description["text_encoder"],
        "experts": _experts(config),
        "trained on": training.get("environment"),
        "tasks": ", ".join(training.get("tasks") or ()),
        "training": _training(training),
        "versions": training.get("moe_robot") and f"moe_robot {training['moe_robot']}",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, str(value))
    if not training:
        table.add_row("training", "no train.json beside the weights: nothing is known of it")
    Console().print(table, highlight=False)


def _flops(flops: Mapping[str, int] | None) -> str | None:
    if not flops:
        return None
    parts = ", ".join(f"{name} {n / 1e6:.2f}" for name, n in flops.items())
    return f"{sum(flops.values()) / 1e6:.1f} MFLOPs: {parts}"


def _experts(config: Mapping[str, Any]) -> str | None:
    if "experts" not in config or config.get("feed_forward", "moe") != "moe":
        return None
    names = ", ".join(f"{role} {n}" for role, n in config["experts"].items())
    return (
        f"{names}; {config.get('experts_per_token')} per token, {config.get('layers', '?')} blocks and the entry layer"
    )


def _training(training: Mapping[str, Any]) -> str:
    told = [
        f"{training[key]:,.10g} {unit}"
        for key, unit in (("steps", "steps"), ("samples", "samples"), ("episodes", "episodes"))
        if key in training
    ]
    told += [f"{training['minutes']:.1f} min"] if "minutes" in training else []
    told += [f"seed {training['seed']}"] if "seed" in training else []
    told += ["not finished"] if training.get("complete") is False else []
    return ", ".join(told)
