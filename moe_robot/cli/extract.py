"""``moe-robot extract``: cuts out of a mixture the small policy that one instruction needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from moe_robot.types import UserError


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot extract``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder or a training run, of a policy trained with --config routing_unit=instruction."""
    instruction: str
    """The sentence that the small policy shall follow; it follows no other."""
    out: Path
    """Folder for the small policy's checkpoint."""


def run(options: Options) -> int:
    """Cut, save, and say what was saved."""
    from moe_robot.registry import load_policy

    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty: choose a new folder for --out, so that nothing is overwritten")
    if not options.instruction.strip():
        raise UserError("--instruction is empty: expected the sentence that the small policy shall follow")
    policy = load_policy(options.checkpoint)
    if not hasattr(policy, "extracted"):
        raise UserError(f"{options.checkpoint} holds a {type(policy).__name__}, from which nothing can be cut out")
    small = policy.extracted(options.instruction)
    small.save_pretrained(options.out)
    before, after = policy.cost(), small.cost()
    print(
        f"{options.instruction!r}: {after.total_parameters:,} of {before.total_parameters:,} parameters, "
        f"{after.total_flops / 1e6:.1f} of {before.total_flops / 1e6:.1f} MFLOPs a chunk -> {options.out}"
    )
    return 0
