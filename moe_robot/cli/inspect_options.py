"""The options of ``moe-robot inspect``, which both of its halves read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot inspect``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, or a training run or demo that holds one; or a data set."""
    routing: bool = False
    """Run the policy over frames of demonstrations and report which expert does what: a table, routing.json,
    routing.png (heat maps) and regions.png (pictures)."""
    placement: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Propose which experts to put on which of N devices, from the routes of frames of demonstrations, and play these
    again to see how uneven it is and how much travels: a table, placement.json and placement.png."""
    batch: int = 16
    """Frames of a step of --placement, for example the robots that are answered at once."""
    copies: int = 0
    """Of --placement: also a proposal with so many experts lying on a second device or more, where it helps most."""
    data: Path | None = None
    """Demonstrations for --routing and --placement: a data set, or a YAML file that mixes several. Left out: the
    `demonstrations` beside the run, where `moe-robot demo` puts them."""
    frames: Annotated[int, tyro.conf.arg(metavar="N")] = 400
    """About how many frames, evenly over tasks and over the quarters of an episode."""
    tasks: str | None = None
    """Tasks of the demonstrations, with commas between. Left out: all."""
    episodes: str | None = None
    """Episodes of the demonstrations, for example 0-99,120. Left out: all."""
    cameras: str | None = None
    """Cameras of the demonstrations, with commas between. Left out: all."""
    rename: tuple[str, ...] = ()
    """Names of the demonstrations and what to call them, as THEIRS=OURS, as the policy was trained with."""
    split: Literal["auto", "validation", "train", "all"] = "auto"
    """Which episodes. auto: those that training held out, where each task has at least 8 of them, otherwise all."""
    start: bool = True
    """Also look with the policy as it was before training: what is there from the start was not learned."""
    out: Path | None = None
    """Folder for the files of --routing and --placement. Left out: `routing` in the checkpoint's folder. Of a data set:
    folder for inspect.json and inspect.html, a page with contact sheets and plots."""
    repair: bool = False
    """Write what can be used of a damaged data set to a new one, at --out or beside it; the old one stays as it is."""
    videos: bool = False
    """Of a data set: decode every video to its end, not only see that it is there."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    json: bool = False
    """Print JSON in place of tables."""
