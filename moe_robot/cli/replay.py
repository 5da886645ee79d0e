"""``moe-robot replay``: asks a policy about what was recorded, and says how far its actions are from what was done."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from moe_robot.cli.selection import is_demonstrations, open_selected
from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.evaluation.replayed import Replayed


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot replay``."""

    recording: tyro.conf.Positional[Path]
    """Demonstrations: a data set in LeRobot's v3 format, or a YAML file that mixes several. Or a recording of a robot:
    an MCAP file, as `moe-robot deploy --record` writes it or others do, a rosbag2 folder, or a ROS 1 bag."""
    policy: Path
    """A checkpoint folder, a training run that holds one, or what `moe-robot export` wrote."""
    contract: str | None = None
    """Of a recording: the robot's contract, a YAML file, or a shipped one by its name (pitstop)."""
    instruction: str | None = None
    """What the robot was to do. Left out: what was recorded."""
    split: Literal["all", "validation", "train"] = "all"
    """Of demonstrations: which episodes; validation are those that training holds out."""
    tasks: str | None = None
    """Of demonstrations: episodes of these tasks only (comma-separated)."""
    episodes: str | None = None
    """Of demonstrations: these episodes only, for example 0-99,120."""
    cameras: str | None = None
    """Of demonstrations: these cameras only (comma-separated)."""
    rename: tuple[str, ...] = ()
    """Of demonstrations: names and what to call them, as THEIRS=OURS, as the policy was trained with."""
    stream: bool = False
    """Of demonstrations: decode pictures when they are needed, without a cache on the disk."""
    every: int = 1
    """Of demonstrations: ask the policy at every N-th frame, and compare N actions of its plan."""
    most: int | None = None
    """Compare no more steps than this, from the beginning."""
    plot: Path | None = None
    """Draw recorded and answered actions over time to this PNG file."""
    json: bool = False
    """Print JSON in place of the table."""


OF_DEMONSTRATIONS = ("split", "tasks", "episodes", "cameras", "rename", "stream", "every")


def run(options: Options) -> int:
    """Read, ask, compare, print."""
    if options.most is not None and options.most < 1:
        raise UserError(f"--most {options.most}: expected 1 or more")
    if options.plot is not None and options.plot.suffix != ".png":
        raise UserError(f"--plot {options.plot}: expected a name that ends with .png")
    replayed, result = (_demonstrations if is_demonstrations(options.recording) else _recording)(options)
    result |= {"steps": len(replayed.times), "skipped": replayed.skipped, "entries": replayed.rows()}
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print("\n".join(_table(result)))
    if options.plot is not None:
        draw(replayed, options.plot)
        print(f"drawn to {options.plot}", file=sys.stderr)
    return 0


def _recording(options: Options) -> tuple[Replayed, dict[str, Any]]:
    """A robot's recording."""
    from moe_robot.deploy import checkpoint
    from moe_robot.deploy.bag_steps import RecordedSteps
    from moe_robot.deploy.contract import load_contract
    from moe_robot.evaluation.replayed import replay

    for field in fields(Options):
        if field.name in OF_DEMONSTRATIONS and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name} is for demonstrations, and {options.recording} is none: leave it out")
    if options.contract is None:
        raise UserError(
            f"{options.recording} is no data set: of a robot's recording say --contract, a YAML file or pitstop"
        )
    contract, folder = load_contract(options.contract), checkpoint.policy_directory(options.policy)
    steps = RecordedSteps(options.recording, contract, options.instruction)
    try:
        act = checkpoint.load_act(folder, contract, steps.task)
        replayed = replay(act, steps.names, steps, options.most)
    except ValueError as error:
        raise UserError(f"{options.recording}: {error}") from error
    finally:
        steps.close()
    what = {"recording": str(options.recording), "policy": str(folder), "instruction": steps.task}
    return replayed, what | {"compared": steps.what, "episodes": 1}


def _demonstrations(options: Options) -> tuple[Replayed, dict[str, Any]]:
    """A data set, or a mixture of several."""
    from rich.console import Console
    from rich.progress import Progress

    from moe_robot.data.replay import recorded_steps
    from moe_robot.deploy.checkpoint import policy_directory
    from moe_robot.deploy.exported import ExportedPolicy, is_export
    from moe_robot.evaluation.replayed import replay
    from moe_robot.registry import load_policy
    from moe_robot.types import action_chunk

    if options.contract is not None:
        raise UserError(f"--contract is for recordings of a robot, and {options.recording} is a data set: leave it out")
    if options.every < 1:
        raise UserError(f"--every {options.every}: expected 1 or more")
    folder = policy_directory(options.policy)
    dataset = open_selected(options.recording, options, options.split, "stream" if options.stream else "cache")
    policy = ExportedPolicy(folder) if is_export(folder) else load_policy(folder)
    if reason := policy.features.mismatch(dataset.features):
        raise UserError(f"the policy does not fit {options.recording}: {reason}")
    total = min(len(dataset), options.most or len(dataset))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("replaying", total=total)
        steps = recorded_steps(
            dataset, options.every, options.instruction, lambda done: bar.update(row, completed=done)
        )
        try:
            replayed = replay(partial(action_chunk, policy), dataset.features.action_names, steps, options.most)
        except ValueError as error:
            raise UserError(f"{options.recording}: {error}") from error
    sentences = [options.instruction] if options.instruction else list(dataset.tasks)
    instruction = sentences[0] if len(sentences) == 1 else None
    what = {"recording": str(options.recording), "policy": str(folder), "instruction": instruction}
    return replayed, what | {"compared": "actions", "episodes": len(set(replayed.episodes.tolist()))}


def _table(result: dict[str, Any]) -> list[str]:
    rows, episodes = result["entries"], result["episodes"]
    width = max(len("entry"), *(len(row["name"]) for row in rows))
    of = f" of {episodes} episodes" if episodes > 1 else ""
    told = f", {result['instruction']!r}" if result["instruction"] else ""
    lines = [
        f"{result['recording']}: {result['steps']} {result['compared']}{of}{told}",
        f"{'entry':<{width}}  {'mean':>10}  {'of const.':>9}  {'max':>10}  {'at':>9}  recorded",
    ]
    for row in rows:
        share = "-" if row["share"] is None else f"{row['share']:.0%}"
        at = f"{row['max_at']:.2f} s" + (f", episode {row['max_episode']}" if episodes > 1 else "")
        span = f"{row['recorded_min']:.3g} to {row['recorded_max']:.3g}"
        lines.append(f"{row['name']:<{width}}  {row['mean']:10.3g}  {share:>9}  {row['max']:10.3g}  {at:>9}  {span}")
    lines.append("of const.: the mean as a share of what the best constant answer is away; 100% has learned nothing")
    if result["skipped"]:
        lines.append(f"{result['skipped']} steps were left out: the policy does not plan that far ahead")
    return lines


def draw(replayed: Replayed, path: Path) -> None:
    """A panel per entry: what was recorded and what the policy says, over time, one episode after the other."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    n = len(replayed.names)
    new = np.flatnonzero(np.diff(replayed.episodes)) + 1
    times, ends = replayed.times.copy(), []
    for place in new:  # each episode begins where the one before ended
        ends.append(float(times[place - 1]))
        times[place:] += times[place - 1]
    figure, panels = pyplot.subplots(n, 1, figsize=(8, 1.2 * n + 1), sharex=True, squeeze=False)
    for i, (name, panel) in enumerate(zip(replayed.names, panels[:, 0], strict=True)):
        panel.plot(times, replayed.recorded[:, i], color="black", linewidth=1, label="recorded")
        panel.plot(times, replayed.answered[:, i], color="tab:red", linewidth=1, label="policy")
        panel.set_ylabel(name, rotation=0, ha="right", fontsize=8)
        for end in ends:
            panel.axvline(end, color="lightgrey", linewidth=0.8, zorder=0)
    panels[0, 0].legend(loc="upper right", fontsize=8)
    panels[-1, 0].set_xlabel("seconds of the recording")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
