"""Checkpoints on disk: the policy for use and the state for resuming. A kill at any moment leaves both whole."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from moe_robot.data.durable import write_atomically
from moe_robot.types import UserError

STATE_FILE = "state.pt"
CHECKPOINT = "checkpoint"


def save_state(run: Path, state: Mapping[str, Any]) -> None:
    """Write ``run/state.pt`` beside its predecessor, then take its place in one step."""
    content = io.BytesIO()  # torch's own writer hides a full disk behind an error of another kind
    torch.save(dict(state), content)

    def write(path: Path) -> None:
        path.write_bytes(content.getbuffer())

    write_atomically(run / STATE_FILE, write)


def load_state(run: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote (tensors and plain values only: nothing in the file is executed)."""
    path = run / STATE_FILE
    if not path.is_file():
        raise UserError(
            f"nothing to resume in {run}: expected {STATE_FILE} of an interrupted run; leave out --resume to begin"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({reason}): begin again with another --out") from error


def save_policy(run: Path, save: Callable[[Path], None], record: Mapping[str, Any]) -> Path:
    """Write ``run/checkpoint`` through ``save(folder)`` with ``train.json`` beside it, replacing an older one whole."""
    folder, temporary, old = run / CHECKPOINT, run / (CHECKPOINT + ".new"), run / (CHECKPOINT + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        save(temporary)
        (temporary / "train.json").write_text(json.dumps(record, indent=2))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
