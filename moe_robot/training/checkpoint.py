"""The policy for use on disk. A kill at any moment leaves it whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint"


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
