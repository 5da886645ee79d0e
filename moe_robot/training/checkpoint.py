"""What a run leaves on disk: its states, found by their names, and the policy for use. A kill leaves both whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moe_robot.data.durable import TEMPORARY

CHECKPOINT = "checkpoint"
STATES = "state"
OLD_STATE = "state.pt"


def has_state(run: Path) -> bool:
    """Whether a run was begun in this folder, and saved its state."""
    return newest_state(run) is not None or (run / OLD_STATE).exists()


def newest_state(run: Path) -> Path | None:
    """The folder of the latest complete state; None without one."""
    return max(complete_states(run), default=None)


def complete_states(run: Path) -> list[Path]:
    """The folders of all states that were written to their end."""
    folders = (run / STATES).glob("step-*") if (run / STATES).is_dir() else ()
    return [folder for folder in folders if not folder.name.endswith(TEMPORARY)]


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
