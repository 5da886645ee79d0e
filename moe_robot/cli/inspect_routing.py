"""``moe-robot inspect --routing``: runs a policy over frames of demonstrations, writes the report and its pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_robot import __version__
from moe_robot.cli.inspect_checkpoint import training_record
from moe_robot.cli.selection import open_selected
from moe_robot.registry import load_policy, presets, weights_sha256
from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Observation, TellsTokenRoutes, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_robot.cli.inspect_options import Options
    from moe_robot.data.loader import Dataset
    from moe_robot.data.mixture import Mixture
    from moe_robot.evaluation.routing import Frame

SEED = 0
ENOUGH = 8
"""Held-out episodes of a task that are enough to look at them alone."""


def inspect_routing(options: Options, folder: Path) -> int:
    """Write ``routing.json``, ``routing.png`` and, where the policy tells which token went where, ``regions.png``."""
    from rich.console import Console

    from moe_robot.evaluation.journal import write_atomically
    from moe_robot.evaluation.routing import routing_json
    from moe_robot.evaluation.routing_picture import draw_routing
    from moe_robot.evaluation.routing_regions import draw_regions
    from moe_robot.evaluation.routing_table import print_routing
    from moe_robot.training.train import resolve_device

    if options.frames < 1:
        raise UserError(f"--frames is {options.frames}, expected at least 1")
    console = Console(stderr=options.json)
    training = training_record(folder) or {}
    data = options.data or find_demonstrations(options.checkpoint, folder)
    device = str(resolve_device(options.device))
    policy = load_policy(folder, device=device)
    dataset, split = open_episodes(data, options)
    reason = policy.features.mismatch(dataset.features)
    if reason:
        raise UserError(f"the demonstrations in {data} do not fit the checkpoint {folder}: {reason}")
    out = options.out or folder / "routing"
    chosen = choose_frames(dataset, options.frames)
    look(policy, dataset, chosen[:1], console)  # a policy without a gate is told apart before anything is written
    make_folder(out)
    frames = look(policy, dataset, chosen, console)
    fresh = None
    if options.start:  # it began with all tasks, whichever are looked at
        whole = open_selected(data, replace(options, tasks=None, episodes=None), "train")
        fresh = untrained(folder, whole, training, device)
    report = routing_json(
        frames,
        (training.get("routing") or {}).get("step0"),
        look(fresh, dataset, chosen, console) if fresh is not None else [],
        looked_at(folder, data, dataset, split),
    )
    text = json.dumps(report, indent=2) + "\n"
    write_atomically(out / "routing.json", text)
    draw_routing(report, out / "routing.png")
    files = ["routing.json", "routing.png"]
    if frames[0].tokens:
        draw_regions(frames, out / "regions.png")
        files.append("regions.png")
    if options.json:
        sys.stdout.write(text)
    else:
        print_routing(report, console)
    if not frames[0].tokens:
        console.print(
            "no regions.png: this policy does not tell which token went where (token_routes)", highlight=False
        )
    console.print(f"{out}: {', '.join(files)}", highlight=False)
    return 0


def looked_at(folder: Path, data: Path, dataset: Dataset | Mixture, split: str) -> dict[str, Any]:
    """What a report is of: the policy, and the demonstrations that it was shown."""

    return {
        "moe_robot": __version__,
        "checkpoint": str(folder),
        "checkpoint_sha256": weights_sha256(folder),
        "preset": (training_record(folder) or {}).get("preset"),
        "data": str(data),
        "data_hash": dataset.content_hash,
        "split": split,
        "seed": SEED,
    }


def find_demonstrations(checkpoint: Path, folder: Path) -> Path:
    """The demonstrations that ``moe-robot demo`` lays beside a run.

    Raises:
        UserError: there are none.
    """
    places = [checkpoint / "demonstrations"]
    places += [parent / "demonstrations" for parent in folder.resolve().parents[:2]]
    for place in places:
        if (place / "meta" / "info.json").is_file():
            return place
    raise UserError(f"no demonstrations beside {checkpoint} (looked for {places[-1]}): name the data set with --data")


def open_episodes(data: Path, options: Options) -> tuple[Dataset | Mixture, str]:
    """The episodes to look at, and which these are: validation, train or all."""
    if options.split != "auto":
        return open_selected(data, options, options.split), options.split
    everything = open_selected(data, options, "all")
    try:
        held_out = open_selected(data, options, "validation")
    except UserError:
        return everything, "all"  # too few episodes for any to be held out
    of_task = [held_out.episodes.task.count(task) for task in set(everything.episodes.task)]
    return (held_out, "validation") if min(of_task) >= ENOUGH else (everything, "all")


def choose_frames(dataset: Dataset | Mixture, n: int) -> list[tuple[int, int, int]]:
    """About ``n`` different frames, evenly over tasks and quarters of an episode: (episode, quarter, index).

    The episode is its place in ``dataset.episodes``, the index one for ``dataset.batch``. Of each chosen episode every
    quarter gives as many frames, so that episodes do not differ between quarters.
    """
    episodes = dataset.episodes
    rng = np.random.default_rng(SEED)
    tasks = tuple(dict.fromkeys(episodes.task))
    lengths = episodes.stop - episodes.start
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    per_quarter = -(-n // (4 * len(tasks)))
    chosen: list[tuple[int, int, int]] = []
    for task in tasks:
        of_task = rng.permutation([e for e, name in enumerate(episodes.task) if name == task])
        turns = np.bincount(np.arange(per_quarter) % len(of_task), minlength=len(of_task))
        for episode, frames in zip(of_task, turns, strict=True):
            quarter_F = 4 * np.arange(int(lengths[episode])) // int(lengths[episode])
            for quarter in range(4):
                there = np.flatnonzero(quarter_F == quarter)
                picked = rng.choice(there, min(int(frames), len(there)), replace=False)
                chosen += [(int(episode), quarter, int(first[episode] + frame)) for frame in sorted(picked)]
    return chosen


def look(
    policy: Any, dataset: Dataset | Mixture, chosen: Sequence[tuple[int, int, int]], console: Console
) -> list[Frame]:
    """One inference on every chosen frame, each alone as on a robot."""
    from rich.progress import track

    from moe_robot.evaluation.routing import Frame

    episodes = dataset.episodes
    first = np.concatenate([[0], np.cumsum(episodes.stop - episodes.start)[:-1]])
    frames: list[Frame] = []
    for episode, quarter, index in track(
        chosen, "looking at frames", console=console, transient=True, disable=not console.is_terminal
    ):
        row = dataset.batch([index])
        images = {key.removeprefix(IMAGE_PREFIX): row[key][0] for key in row if key.startswith(IMAGE_PREFIX)}
        policy.reset()
        policy.select_action(Observation(images, row[STATE][0], row[TASK][0]))
        routing = policy.routing()
        if routing is None:
            raise UserError(
                "this policy has no gate: every token takes the same way, so there is no routing to report; inspect it "
                "without --routing"
            )
        tokens = policy.token_routes() if isinstance(policy, TellsTokenRoutes) else ()
        number, step = int(episodes.index[episode]), int(index - first[episode])
        frames.append(Frame(episodes.task[episode], quarter, number, step, row[TASK][0], routing, tokens, images))
    return frames


def untrained(folder: Path, dataset: Dataset | Mixture, training: Mapping[str, Any], device: str) -> Any | None:
    """A policy of the same shape before its first training step, from the same seed; None where it cannot be rebuilt.

    On the data of its training these are the weights with which it began: training makes the policy first of all.
    """
    import torch

    config = json.loads((folder / "config.json").read_text()).get("config")
    classes = presets()
    if not isinstance(config, dict) or config.get("preset") not in classes:
        return None
    shape = {key: value for key, value in config.items() if key not in {"preset", "task_names", "places"}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.get("seed", SEED))
        fresh = classes[config["preset"]].from_preset(
            config["preset"], dataset.features, dataset.statistics, dataset.tasks, config.get("task_names", ()), **shape
        )
    return fresh.to(device).eval()


def make_folder(out: Path) -> None:
    """The folder for the report, made if need be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / "routing.json.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; name another --out") from error
