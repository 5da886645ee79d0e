"""``moe-robot bench policy``: latency of a new action chunk on one core, and training samples per second.

The preset is measured beside ``dense-active`` in turn, step by step, so that the ratio holds on a machine that other
work disturbs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from moe_robot.cli.policy_speed import BATCH, Act, Learn, alternate, any_statistics, observations_of
from moe_robot.types import Observation

PEER = "dense-active"
ONNX = "onnx"


def measure(
    env: Any, preset: str, device_name: str, seconds: float, threads: int = 0, onnx: bool = False
) -> dict[str, Any]:
    """Medians of CPU and wall time for ``preset`` and its dense peer, and their ratios. Closes ``env``.

    Training runs on ``threads`` threads, 0 for one per core. With ``onnx``, the exported preset is timed as well.
    """
    import torch

    from moe_robot.registry import environment_features, presets, unknown
    from moe_robot.training.train import resolve_device

    found = presets()
    if preset not in found:
        raise unknown("preset", preset, found)
    device = resolve_device(device_name)
    try:
        features = environment_features(env)
        observations = observations_of(env)
    finally:
        env.close()
    statistics = any_statistics(features)
    sentences = [observation.task or "" for observation in observations]
    policies = {
        name: found[name].from_preset(name, features, statistics, sentences).to(device)
        for name in dict.fromkeys((preset, PEER))
    }
    cores = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    acts = {name: Act(policy, observations[0]) for name, policy in policies.items()}
    exported = {ONNX: _exported(acts[preset].policy, observations[0])} if onnx else {}
    latency = alternate({**acts, **exported}, seconds)
    torch.set_num_threads(cores)
    training = alternate({name: Learn(policy, features, observations) for name, policy in policies.items()}, seconds)
    mine, peer = preset, PEER
    in_onnx = {
        "onnx_chunk_cpu_ms": 1e3 * latency[ONNX].cpu,
        "onnx_chunk_wall_ms": 1e3 * latency[ONNX].wall,
        "onnx_chunk_cpu_over_torch": latency[ONNX].cpu / latency[mine].cpu,
    } if onnx else {}  # fmt: skip
    return {
        "preset": mine,
        "parameters": sum(p.numel() for p in policies[mine].parameters()),
        "chunk_cpu_ms": 1e3 * latency[mine].cpu,
        "chunk_wall_ms": 1e3 * latency[mine].wall,
        "chunk_cpu_over_dense_active": latency[mine].cpu / latency[peer].cpu,
        **in_onnx,
        "training_samples_per_second": BATCH / training[mine].wall,
        "training_samples_per_cpu_second": BATCH / training[mine].cpu,
        "training_cpu_over_dense_active": training[mine].cpu / training[peer].cpu,
        "batch": BATCH,
        "threads": f"1 for a chunk, {cores} for training",
        "device": str(device),
        "load_average": os.getloadavg()[0],
    }


def _exported(policy: Any, observation: Observation) -> Callable[[], Any]:
    """A new chunk for one observation, by onnxruntime on one thread."""
    from moe_robot.cli.export import export
    from moe_robot.deploy.exported import ExportedPolicy

    with tempfile.TemporaryDirectory() as folder:
        export(policy.eval(), Path(folder) / ONNX, (ONNX,), any_batch=True, origin={})
        return partial(ExportedPolicy(Path(folder) / ONNX).action_chunk, observation)
