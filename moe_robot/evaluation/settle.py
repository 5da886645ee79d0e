"""Settles what an evaluation is before anything is played: checkpoint, environment, tasks, device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_robot.evaluation.checks import check_instructions
from moe_robot.evaluation.results import Setup, versions
from moe_robot.evaluation.roles import SHUFFLED
from moe_robot.processes import Rank
from moe_robot.registry import environment_features, environment_id, make_environment, select_tasks, sha256
from moe_robot.types import UserError


def settle(
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
    envs: int = 1,
    ranks: int = 1,
) -> Setup:
    """Complete the settings of :func:`.rollout.evaluate` from the checkpoint and the environment.

    Raises:
        UserError: no weights, no environment, an unknown task or instruction set, a device that is not here.
    """
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
        envs=envs,
        ranks=ranks,
        training=training,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def facts(env: Any) -> dict[str, Any]:
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


def device_of(device: str, rank: Rank | None) -> str:
    """The device of one rank: each has a GPU of its own, as far as there are enough."""
    import torch

    if rank is None or device != "cuda":
        return device
    return f"cuda:{rank.local % torch.cuda.device_count()}"


def identity(setup: Setup) -> dict[str, Any]:
    """Everything that decides an episode except its job: episodes of another identity are not mixed in."""
    return {
        "checkpoint": setup.checkpoint_sha256,
        "environment": setup.environment,
        "environment options": dict(setup.environment_options),
        "instructions": setup.instructions,
        "tasks": setup.tasks if setup.instructions == SHUFFLED else None,  # they decide which one is named
        "device": setup.device,
        "versions": versions(),
        # left out where they are as they were before there was a choice, so that older journals go on
        **({} if setup.instruction is None else {"instruction": setup.instruction}),
        **({} if setup.envs == 1 else {"environments in a batch": setup.envs}),
    }
