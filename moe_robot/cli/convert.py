"""``moe-robot convert``: a robomimic file becomes a data set, or demonstrations become a robomimic file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from moe_robot.cli.selection import open_selected
from moe_robot.types import UserError


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot convert``."""

    source: tyro.conf.Positional[Path]
    """A robomimic file (.hdf5); or demonstrations: a data set in LeRobot's v3 format, or a YAML file of several."""
    out: tyro.conf.Positional[Path]
    """The data set's folder; or the robomimic file (.hdf5)."""
    cameras: str | None = None
    """Only these cameras (comma-separated); all by default."""
    images: Literal["png", "h264", "av1"] = "png"
    """Of a robomimic file: how pictures are stored, losslessly or as a video of this codec per camera."""
    low_dim: tuple[str, ...] = ()
    """Of a robomimic file: observations that make the state, in this order. Left out: all but `object`, which is kept
    as environment_state, a label."""
    fps: int | None = None
    """Of a robomimic file: control steps per second. Left out: its env_args say."""
    instruction: str | None = None
    """Of a robomimic file: the sentence of every episode. Left out: what the file says, or its environment's name."""
    split: Literal["all", "train", "validation"] = "all"
    """Of demonstrations: which episodes; validation are those that training holds out."""
    tasks: str | None = None
    """Of demonstrations: episodes of these tasks only (comma-separated)."""
    episodes: str | None = None
    """Of demonstrations: these episodes only, for example 0-99,120."""
    rename: tuple[str, ...] = ()
    """Of demonstrations: names and what to call them, as THEIRS=OURS: features, cameras, entries of vectors."""
    json: bool = False
    """Print JSON in place of a sentence."""


OF_ROBOMIMIC, OF_DEMONSTRATIONS = ("images", "low_dim", "fps", "instruction"), ("split", "tasks", "episodes", "rename")


def run(options: Options) -> int:
    """Convert, with a progress bar; the direction follows from the names."""
    from rich.console import Console
    from rich.progress import Progress

    from moe_robot.data.robomimic import is_hdf5

    reads, writes = is_hdf5(options.source), is_hdf5(options.out)
    if reads == writes:
        raise UserError(
            f"{options.source} and {options.out} are both {'robomimic files' if reads else 'data sets'}: expected one"
            " of them to end with .hdf5"
        )
    for field in fields(Options):
        if (
            field.name in (OF_DEMONSTRATIONS if reads else OF_ROBOMIMIC)
            and getattr(options, field.name) != field.default
        ):
            what = "demonstrations" if reads else "a robomimic file"
            raise UserError(f"--{field.name.replace('_', '-')} is for reading {what}: leave it out")
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("converting", total=None)

        def show(done: int, total: int) -> None:
            bar.update(row, completed=done, total=total)

        try:
            episodes, frames = (_from if reads else _to)(options, show)
        except KeyboardInterrupt:
            kept = "the same command goes on" if reads else "nothing was written"
            raise KeyboardInterrupt(kept) from None
    if options.json:
        print(json.dumps({"out": str(options.out), "episodes": episodes, "frames": frames}))
    else:
        print(f"{options.out}: {episodes} episodes, {frames:,} frames")
    return 0


def _from(options: Options, show: Callable[[int, int], None]) -> tuple[int, int]:
    from moe_robot.data.from_robomimic import Choice, from_robomimic

    if options.fps is not None and options.fps < 1:
        raise UserError(f"--fps {options.fps}: expected at least 1")
    cameras = options.cameras.split(",") if options.cameras is not None else None
    choice: Any = {"low_dim": options.low_dim, "fps": options.fps, "sentence": options.instruction}
    choice |= {"cameras": None if cameras is None else tuple(camera.strip() for camera in cameras)}
    return from_robomimic(options.source, options.out, Choice(codec=options.images, **choice), show)


def _to(options: Options, show: Callable[[int, int], None]) -> tuple[int, int]:
    from moe_robot.data.to_robomimic import to_robomimic

    return to_robomimic(open_selected(options.source, options, options.split, "stream"), options.out, show)
