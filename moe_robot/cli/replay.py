"""``moe-robot replay``: asks a policy about a recording, and says how far its actions are from what was recorded."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from moe_robot.registry import checkpoint_directory
from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.evaluation.replayed import Replayed


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot replay``."""

    recording: tyro.conf.Positional[Path]
    """An MCAP file, as `moe-robot deploy --record` writes it or others do, a rosbag2 folder, or a ROS 1 bag."""
    policy: Path
    """A checkpoint folder, or a training run that holds one."""
    contract: str
    """The robot's contract: a YAML file, or a shipped one by its name (pitstop)."""
    instruction: str | None = None
    """What the robot was to do. Left out: what the recording says."""
    most: int | None = None
    """Compare no more steps than this, from the beginning."""
    plot: Path | None = None
    """Draw recorded and answered actions over time to this PNG file."""
    json: bool = False
    """Print JSON in place of the table."""


def run(options: Options) -> int:
    """Read, ask, compare, print."""
    from moe_robot.deploy.bag_steps import RecordedSteps
    from moe_robot.deploy.checkpoint import load_act
    from moe_robot.deploy.contract import load_contract
    from moe_robot.evaluation.replayed import replay

    if options.most is not None and options.most < 1:
        raise UserError(f"--most {options.most}: expected 1 or more")
    if options.plot is not None and options.plot.suffix != ".png":
        raise UserError(f"--plot {options.plot}: expected a name that ends with .png")
    contract, folder = load_contract(options.contract), checkpoint_directory(options.policy)
    steps = RecordedSteps(options.recording, contract, options.instruction)
    try:
        act = load_act(folder, contract, steps.task)
        replayed = replay(act, steps.names, steps, options.most)
    except ValueError as error:
        raise UserError(f"{options.recording}: {error}") from error
    finally:
        steps.close()
    result = {
        "recording": str(options.recording),
        "policy": str(folder),
        "instruction": steps.task,
        "compared": steps.what,
        "steps": len(replayed.times),
        "skipped": replayed.skipped,
        "entries": replayed.rows(),
    }
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print("\n".join(_table(result)))
    if options.plot is not None:
        draw(replayed, options.plot)
        print(f"drawn to {options.plot}", file=sys.stderr)
    return 0


def _table(result: dict[str, Any]) -> list[str]:
    rows = result["entries"]
    width = max(len("entry"), *(len(row["name"]) for row in rows))
    lines = [
        f"{result['recording']}: {result['steps']} {result['compared']}, {result['instruction']!r}",
        f"{'entry':<{width}}  {'mean':>10}  {'max':>10}  {'at':>8}  recorded",
    ]
    lines += [
        f"{row['name']:<{width}}  {row['mean']:10.3g}  {row['max']:10.3g}  {row['max_at']:6.2f} s  "
        f"{row['recorded_min']:.3g} to {row['recorded_max']:.3g}"
        for row in rows
    ]
    if result["skipped"]:
        lines.append(f"{result['skipped']} steps were left out: the policy does not plan that far ahead")
    return lines


def draw(replayed: Replayed, path: Path) -> None:
    """A panel per entry: what was recorded and what the policy says, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n = len(replayed.names)
    figure, panels = pyplot.subplots(n, 1, figsize=(8, 1.2 * n + 1), sharex=True, squeeze=False)
    for i, (name, panel) in enumerate(zip(replayed.names, panels[:, 0], strict=True)):
        panel.plot(replayed.times, replayed.recorded[:, i], color="black", linewidth=1, label="recorded")
        panel.plot(replayed.times, replayed.answered[:, i], color="tab:red", linewidth=1, label="policy")
        panel.set_ylabel(name, rotation=0, ha="right", fontsize=8)
    panels[0, 0].legend(loc="upper right", fontsize=8)
    panels[-1, 0].set_xlabel("seconds of the recording")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
