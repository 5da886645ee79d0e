"""A trained or exported policy as the policy process asks it: loaded, checked against the contract, and tried once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.exported import ExportedPolicy, is_export
from moe_robot.deploy.inference import Act
from moe_robot.registry import checkpoint_directory, load_policy
from moe_robot.types import Observation, Policy, action_chunk


def policy_directory(path: Path) -> Path:
    """The folder of an exported policy, or the checkpoint folder at or in ``path``.

    Raises:
        UserError: there is neither.
    """
    return path if is_export(path) else checkpoint_directory(path)


def load_act(checkpoint: Path, contract: Contract, task: str, as_evaluated: bool = False) -> Act:
    """What a :class:`moe_robot.deploy.inference.PolicyProcess` runs in its child, as a ``functools.partial``.

    The network runs once on black pictures, so that what it refuses is told before the robot is connected, and the
    first real answer takes no longer than the others.

    Args:
        checkpoint: a checkpoint folder or a training run; or what `moe-robot export` wrote, which needs no torch.
        contract: of the robot.
        task: the instruction.
        as_evaluated: answer only with what an evaluation plays of each plan before it asks again.

    Raises:
        UserError: there is no such checkpoint, the policy would misread the robot, or it cannot follow ``task``.
    """
    policy = ExportedPolicy(checkpoint) if is_export(checkpoint) else _trained(checkpoint)
    contract.check_policy(policy.features)

    act = partial(action_chunk, policy)
    black = {name: np.zeros((*size, 3), np.uint8) for name, size in policy.features.cameras.items()}
    nothing = Observation(black, np.zeros(len(policy.features.state_names), np.float32), task)
    act(nothing)
    return partial(_first, act, _played(policy, nothing)) if as_evaluated else act


def _first(act: Act, n: int, observation: Observation) -> np.ndarray:
    return act(observation)[:n]


def _played(policy: Policy | ExportedPolicy, observation: Observation) -> int:
    """How many actions of a plan the policy plays before it runs again, found out by asking."""
    if isinstance(policy, ExportedPolicy):
        return policy.manifest.execute
    policy.reset()
    policy.select_action(observation)
    before, played = policy.inference_count, 0
    while policy.inference_count == before:
        policy.select_action(observation)
        played += 1
    policy.reset()
    return played


def _trained(checkpoint: Path) -> Policy:
    import torch

    torch.set_num_threads(1)  # the control loop has the others
    return load_policy(checkpoint)
