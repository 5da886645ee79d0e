"""``moe-robot inspect --placement N``: which experts to put on which of N devices, from measured routes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_robot.cli.inspect_routing import (
    SEED,
    choose_frames,
    find_demonstrations,
    look,
    looked_at,
    make_folder,
    open_episodes,
)
from moe_robot.registry import load_policy
from moe_robot.types import TellsTokenRoutes, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_robot.cli.inspect_options import Options


def inspect_placement(options: Options, folder: Path) -> int:
    """Write ``placement.json`` and ``placement.png``, and print the table."""
    from rich.console import Console

    from moe_robot.evaluation.journal import write_atomically
    from moe_robot.evaluation.placement_picture import draw_placement
    from moe_robot.evaluation.placement_report import placement_json
    from moe_robot.training.train import resolve_device

    devices = options.placement or 0
    for name, value, least in (
        ("--placement", devices, 2),
        ("--frames", options.frames, 2),
        ("--batch", options.batch, 1),
        ("--copies", options.copies, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: expected at least {least}")
    console = Console(stderr=options.json)
    data = options.data or find_demonstrations(options.checkpoint, folder)
    policy = load_policy(folder, device=str(resolve_device(options.device)))
    features = policy.features
    if not isinstance(policy, TellsTokenRoutes):
        raise UserError(
            f"{type(policy).__name__} does not tell which token went where (token_routes), which a placement is made of"
        )
    dataset, split = open_episodes(data, options)
    reason = features.mismatch(dataset.features)
    if reason:
        raise UserError(f"the demonstrations in {data} do not fit the checkpoint {folder}: {reason}")
    chosen = choose_frames(dataset, options.frames)
    first = look(policy, dataset, chosen[:1], console)[0]
    experts = len(first.routing.experts)
    if devices > experts:
        raise UserError(f"--placement {devices} is more devices than there are experts ({experts}): some would be idle")
    if options.copies > experts * (devices - 1):
        raise UserError(f"--copies {options.copies} is more than {experts} experts on {devices} devices can have")
    out = options.out or folder / "routing"
    make_folder(out)
    frames = look(policy, dataset, chosen, console)
    report = placement_json(
        frames,
        devices,
        options.batch,
        options.copies,
        SEED,
        looked_at(folder, data, dataset, split),
    )
    text = json.dumps(report, indent=2) + "\n"
    write_atomically(out / "placement.json", text)
    draw_placement(report, out / "placement.png")
    if options.json:
        sys.stdout.write(text)
    else:
        print_placement(report, console)
    console.print(f"{out}: placement.json, placement.png", highlight=False)
    return 0


def print_placement(report: Mapping[str, Any], console: Console) -> None:
    """Tables in the terminal."""
    from rich.table import Table

    names = list(report["whole"])
    skew = Table(
        title=f"{report['devices']} devices, {report['steps']} steps of {report['batch']} frames: "
        "busiest device over the mean"
    )
    skew.add_column("layer")
    for name in names:
        skew.add_column(f"{name}: mean, 95 %", justify="right")
    skew.add_column("least possible", justify="right")
    for layer in report["layers"]:
        told = [layer["placements"][name] for name in names]
        cells = [f"{t['skew_mean']:.2f}  {t['skew_p95']:.2f}" for t in told]
        skew.add_row(str(layer["layer"]), *cells, f"{layer['lower_bound']:.2f}")
    console.print(skew, highlight=False)
    for name in names:
        whole = report["whole"][name]
        console.print(
            f"{name}: experts take {whole['time']:.2f} times as long as if every step were even "
            f"(least possible {report['lower_bound_time']:.2f}); {whole['leaving']:.0%} of the routes leave their "
            f"device, {whole['sends']:.2f} transfers per token",
            highlight=False,
        )
    where = Table(title=f"which experts go where ({names[-1]})")
    where.add_column("layer")
    for d in range(report["devices"]):
        where.add_column(f"device {d}")
    for layer in report["layers"]:
        where.add_row(str(layer["layer"]), *[", ".join(held) for held in layer["placements"][names[-1]]["devices"]])
    console.print(where, highlight=False)
