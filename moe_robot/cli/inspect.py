"""``moe-robot inspect``: what a checkpoint or a data set is, what a gate does on it, and where its experts may go."""

from __future__ import annotations

import json

from moe_robot.cli.inspect_options import Options
from moe_robot.cli.selection import CHOICES
from moe_robot.registry import checkpoint_directory
from moe_robot.types import UserError


def run(options: Options) -> int:
    """Describe the checkpoint, its routing, or the data set."""
    if (options.checkpoint / "meta").is_dir() and not options.routing and options.placement is None:
        from moe_robot.cli.inspect_data import inspect_data

        return inspect_data(options)
    for name, given in (("--repair", options.repair), ("--videos", options.videos)):
        if given:
            raise UserError(f"{name} is for data sets, and {options.checkpoint} has no meta/info.json: leave it out")
    folder = checkpoint_directory(options.checkpoint)
    if options.placement is not None:
        from moe_robot.cli.inspect_placement import inspect_placement

        if options.routing:
            raise UserError("--routing and --placement are two reports: ask for one of them")
        return inspect_placement(options, folder)
    if options.copies:
        raise UserError("--copies belongs to --placement: add it, or leave --copies out")
    if options.routing:
        from moe_robot.cli.inspect_routing import inspect_routing

        return inspect_routing(options, folder)
    for name in ("data", *CHOICES, "out"):
        if getattr(options, name):
            raise UserError(f"--{name} belongs to --routing and --placement: add one, or leave --{name} out")
    from moe_robot.cli.inspect_checkpoint import describe, print_description

    description = describe(folder)
    if options.json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)
    return 0
