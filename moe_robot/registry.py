"""Finds environments and policies by name, ours and strangers' alike, through entry points."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from moe_robot.types import Features, UserError

POLICY_GROUP = "moe_robot.policies"
ENVIRONMENT_GROUP = "gymnasium.envs"
MANY = 24
"""No more names than this in one line of an error."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is none of ``choices``: the nearest names, else the first of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    some = ", ".join(choices[:MANY]) + (f" and {len(choices) - MANY} more" if len(choices) > MANY else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {some or '(none found)'}"
    return UserError(f"unknown {kind} {name!r}: {hint}")


def environment_id(name: str) -> str:
    """A Gymnasium id from an id or a short name: ``pitstop`` -> ``moe_robot/PitStop-v0``."""
    import gymnasium

    # Gymnasium 1.x no longer loads this group by itself. Registering twice is harmless.
    for point in entry_points(group=ENVIRONMENT_GROUP):
        point.load()()
    if name in gymnasium.registry:
        return name
    short: dict[str, str] = {}
    for env_id in gymnasium.registry:  # later versions of a name come later and win
        namespace, _, rest = env_id.rpartition("/")
        stem = rest.rpartition("-v")[0] or rest
        if namespace == "moe_robot" or stem.lower() not in short:
            short[stem.lower()] = env_id
    try:
        return short[name.lower()]
    except KeyError:
        ours = [env_id for env_id in gymnasium.registry if env_id.startswith("moe_robot/")]
        near = difflib.get_close_matches(name.lower(), short, n=3)
        raise unknown("environment", name, [*ours, *near]) from None


def make_environment(name: str, **options: Any) -> Any:
    """``gymnasium.make`` by id or short name. An option the environment does not know is refused in one line."""
    import gymnasium

    env_id = environment_id(name)
    try:
        return gymnasium.make(env_id, **options)
    except TypeError as error:
        raise UserError(f"environment {env_id} refused its options {options}: {error}") from error


def environment_features(env: Any) -> Features:
    """The features of a ``pixels``/``agent_pos`` environment, read from its spaces and names."""
    import gymnasium

    inner, space = env.unwrapped, env.observation_space
    if not (isinstance(space, gymnasium.spaces.Dict) and {"pixels", "agent_pos"} <= set(space.spaces)):
        raise UserError(
            f"environment {inner} gives {space}: expected a Dict of 'pixels' (camera images) and 'agent_pos' (a vector)"
        )
    pixels = space["pixels"]
    cameras = pixels.spaces if isinstance(pixels, gymnasium.spaces.Dict) else {"pixels": pixels}
    n_state, n_action = np.prod(space["agent_pos"].shape or ()), np.prod(env.action_space.shape)
    sizes: dict[str, Any] = {name: box.shape for name, box in cameras.items()}
    fps = getattr(inner, "control_hz", None) or env.metadata.get("render_fps", 10)
    return Features(
        cameras={name: (int(size[0]), int(size[1])) for name, size in sizes.items()},
        state_names=tuple(getattr(inner, "state_names", [f"state_{i}" for i in range(int(n_state))])),
        action_names=tuple(getattr(inner, "action_names", [f"action_{i}" for i in range(int(n_action))])),
        fps=int(fps),
        environment_names=tuple(getattr(inner, "environment_names", ())),
    )


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """``("control_hz=20", "objects=all")`` -> ``{"control_hz": 20, "objects": "all"}``; values are read as YAML."""
    import yaml

    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"option {pair!r}: expected KEY=VALUE, for example objects=all")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"option {key}: cannot read the value {value!r}; put text in quotes") from None
        for glued in parsed[key] if isinstance(parsed[key], dict) else ():
            if ":" in str(glued):
                raise UserError(
                    f"option {key}: {glued!r} is read as one name; expected a space after the colon, as in {{arm: 2}}"
                )
    return parsed


def select_tasks(env: Any, names: str) -> tuple[str, ...]:
    """Task names from a comma-separated list of tasks and groups. An environment without tasks is one task."""
    inner = env.unwrapped
    tasks = tuple(getattr(inner, "tasks", (env.spec.id if env.spec else type(inner).__name__,)))
    groups: Mapping[str, tuple[str, ...]] = {"all": tasks, **getattr(inner, "task_groups", {})}
    tasks = tuple(dict.fromkeys([*tasks, *(task for group in groups.values() for task in group)]))
    chosen: dict[str, None] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name in groups:
            chosen.update(dict.fromkeys(groups[name]))
        elif name in tasks:
            chosen[name] = None
        else:
            raise unknown("task", name, [*groups, *tasks])
    if not chosen:
        raise UserError(f"no task named: choose from {', '.join([*groups, *tasks])}")
    return tuple(chosen)


def presets() -> dict[str, Any]:
    """Preset name -> policy class that has it in its ``presets()``, from the entry points ``moe_robot.policies``.

    A class without ``presets()`` can be evaluated, deployed and served, and is not for our training.
    """
    classes = [point.load() for point in entry_points(group=POLICY_GROUP)]
    return {preset: cls for cls in classes if hasattr(cls, "presets") for preset in cls.presets()}


def checkpoint_directory(path: str | Path) -> Path:
    """The folder with ``config.json``: ``path`` itself, or inside it for a training run, or for a demo."""
    for folder in (Path(path), Path(path) / "checkpoint", Path(path) / "policy" / "checkpoint"):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"no checkpoint at {path}: expected a folder with config.json, or a training run with checkpoint/")


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex: what tells one checkpoint's weights from another's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(checkpoint: str | Path) -> str | None:
    """The hash of a checkpoint's or run's ``model.safetensors``; None where a policy keeps its weights otherwise."""
    weights = checkpoint_directory(checkpoint) / "model.safetensors"
    return sha256(weights) if weights.is_file() else None


def load_policy(path: str | Path, device: str = "cpu") -> Any:
    """The policy saved at ``path`` (a checkpoint or a training run), by the type named in its ``config.json``."""
    folder = checkpoint_directory(path)
    try:
        kind = json.loads((folder / "config.json").read_text())["policy"]
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'} is no policy config: expected JSON with a key 'policy'") from error
    points = {point.name: point for point in entry_points(group=POLICY_GROUP)}
    if kind not in points:
        raise unknown("policy", kind, points)
    return points[kind].load().from_pretrained(folder, device=device)
