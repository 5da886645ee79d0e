"""``moe-robot inspect``: says what a checkpoint is, and with ``--routing`` what its gate does on demonstrations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moe_robot.registry import checkpoint_directory
from moe_robot.types import UserError


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot inspect``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, or a training run or demo that holds one."""
    routing: bool = False
    """Run the policy over frames of demonstrations and report which expert does what: a table, routing.json,
    routing.png (heat maps) and regions.png (pictures)."""
    data: Path | None = None
    """Demonstrations for --routing. Left out: the `demonstrations` beside the run, where `moe-robot demo` puts them."""
    frames: Annotated[int, tyro.conf.arg(metavar="N")] = 400
    """About how many frames, evenly over tasks and over the quarters of an episode."""
    tasks: str | None = None
    """Tasks of the demonstrations, with commas between. Left out: all."""
    split: Literal["auto", "validation", "train", "all"] = "auto"
    """Which episodes. auto: those that training held out, where each task has at least 8 of them, otherwise all."""
    start: bool = True
    """Also look with the policy as it was before training: what is there from the start was not learned."""
    out: Path | None = None
    """Folder for the files of --routing. Left out: `routing` in the checkpoint's folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    json: bool = False
    """Print JSON in place of tables."""


def run(options: Options) -> int:
    """Describe the checkpoint or its routing."""
    folder = checkpoint_directory(options.checkpoint)
    if options.routing:
        from moe_robot.cli.inspect_routing import inspect_routing

        return inspect_routing(options, folder)
    for name, given in (("--data", options.data), ("--tasks", options.tasks), ("--out", options.out)):
        if given is not None:
            raise UserError(f"{name} belongs to --routing: add it, or leave {name} out")
    from moe_robot.cli.inspect_checkpoint import describe, print_description

    description = describe(folder)
    if options.json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)
    return 0
