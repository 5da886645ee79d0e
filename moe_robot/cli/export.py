"""``moe-robot export``: writes a policy as one graph with its normalisation, to run without this package's network."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from moe_robot.types import Capturable, CapturedPolicy, Observation, UserError

TOLERANCE = 1e-4
"""The file's actions may differ from the policy's by so much, in the environment's units."""


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot export``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder or a training run."""
    out: Path
    """Folder for the exported policy."""
    format: Literal["onnx", "torch", "both"] = "onnx"
    """onnx: policy.onnx, which `moe-robot deploy` runs with onnxruntime alone. torch: policy.pt2 of torch.export."""
    batch: Literal["dynamic", "1"] = "dynamic"
    """How many observations the graph takes at once: any number, or one."""


def run(options: Options) -> int:
    """Capture, write, try, and say what was written."""
    from moe_robot.registry import load_policy, weights_sha256

    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty: choose a new folder for --out, so that nothing is overwritten")
    policy = load_policy(options.checkpoint)
    if not isinstance(policy, Capturable):
        raise UserError(f"{options.checkpoint} holds a {type(policy).__name__}, which cannot be exported")
    digest = weights_sha256(options.checkpoint)
    formats = ("onnx", "torch") if options.format == "both" else (options.format,)
    origin = {"checkpoint_sha256": digest} if digest else {}
    difference = export(policy, options.out, formats, options.batch == "dynamic", origin)
    files = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in sorted(options.out.iterdir()))
    print(f"{files} -> {options.out}; actions differ by at most {difference:.1e} from the checkpoint's in a trial")
    return 0


def export(policy: Any, folder: Path, formats: Sequence[str], any_batch: bool, origin: dict[str, Any]) -> float:
    """Write a policy into ``folder`` and hold it against itself; nothing is left there that fails.

    Args:
        policy: with the methods of :class:`moe_robot.types.Capturable` and :class:`moe_robot.types.PlansAhead`.
        folder: new, or empty.
        formats: "onnx", "torch".
        any_batch: for batches of any size.
        origin: for the manifest.

    Returns:
        the largest difference to the policy's actions, over the examples.

    Raises:
        UserError: the policy cannot be exported, a package is missing, or the actions differ.
    """
    from moe_robot.deploy.exported import ONNX, TORCH, Manifest

    _check_packages(formats)
    captured = policy.captured(any_batch)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        manifest = Manifest(
            policy.features, captured.chunk, captured.execute, captured.vocabulary, captured.only_instruction, any_batch
        )
        manifest.write(partial)
        difference = 0.0
        if "onnx" in formats:
            _write_onnx(captured.program, partial / ONNX, manifest.inputs)
            difference = _largest_difference(policy, captured, _run_onnx(partial))
        if "torch" in formats:
            _write_torch(captured.program, partial / TORCH)
            difference = max(difference, _largest_difference(policy, captured, _run_torch(partial / TORCH, manifest)))
        if not difference <= TOLERANCE:
            raise UserError(f"the exported actions differ by {difference:.1e}, more than {TOLERANCE}: nothing is kept")
        told = {**origin, "versions": _versions(), "largest_difference": difference}
        Manifest(**{**vars(manifest), "origin": told}).write(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return difference


def _check_packages(formats: Sequence[str]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime") if "onnx" in formats else ():
        if find_spec(package) is None:
            raise UserError(f"--format onnx lacks {package}: pip install 'moe-robot[export]'")


def _write_onnx(program: Any, path: Path, inputs: Sequence[str]) -> None:
    import torch

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself; what comes out is tried
        written = torch.onnx.export(
            program, input_names=list(inputs), output_names=["action"], dynamo=True, verbose=False
        )
    assert written is not None
    written.save(str(path), external_data=False)


def _write_torch(program: Any, path: Path) -> None:
    import torch

    torch.export.save(program, str(path))


def _run_onnx(folder: Path) -> Callable[[Observation], np.ndarray]:
    from moe_robot.deploy.exported import ExportedPolicy

    return ExportedPolicy(folder).action_chunk


def _run_torch(path: Path, manifest: Any) -> Callable[[Observation], np.ndarray]:
    import torch

    from moe_robot.words import number_words

    module = torch.export.load(str(path)).module()

    def act(seen: Observation) -> np.ndarray:
        assert seen.state is not None
        images = {camera: torch.from_numpy(seen.images[camera][None]) for camera in manifest.features.cameras}
        task = [] if manifest.vocabulary is None else [number_words([seen.task or ""], manifest.vocabulary)]
        with torch.no_grad():
            return module(images, *(torch.from_numpy(value) for value in (seen.state[None], *task)))[0].numpy()

    return act


def _largest_difference(policy: Any, captured: CapturedPolicy, act: Callable[[Observation], np.ndarray]) -> float:
    return max(float(np.abs(act(seen) - policy.action_chunk(seen)).max()) for seen in captured.examples)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("moe-robot", "torch", "onnx", "onnxscript", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
