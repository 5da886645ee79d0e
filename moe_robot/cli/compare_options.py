"""The options of ``moe-robot compare``, which its parts read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot compare``."""

    out: Path
    """Folder: results/ holds a small JSON per finished run (commit these), runs/ the checkpoints."""
    data: Path | None = None
    """Demonstrations, the same for every entry: a data set, or a YAML file that mixes several, whose first
    part says in which environment to evaluate. May be left out when every entry is loaded."""
    entries: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[LABEL=]PRESET[:KEY=VALUE,...] ...")] = ()
    """What to train: presets with settings, for example moe dense-active small=moe:hidden=64,learning_rate=5e-4. Keys
    are those of `train --config`, or learning_rate, gate_rate, batch_size, warmup, weight_decay, clip, ema."""
    load: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LABEL=CHECKPOINT ...")] = ()
    """Evaluate these checkpoints as entries of their own."""
    sweep: Annotated[str | None, tyro.conf.arg(metavar="KEY=VALUE,VALUE,...")] = None
    """Multiply every entry: one with each value, for example hidden=32,64,128. Curves are drawn into OUT/curves.png."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; every entry is trained with each."""
    steps: int | None = None
    """Train for this many optimiser steps."""
    minutes: float | None = None
    """Or train for this many minutes of wall time."""
    tasks: str | None = None
    """Tasks and groups, with commas between, to train and evaluate on; all of the demonstrations by default. A mixture
    says itself what to train on."""
    train_episodes: str | None = None
    """Train on these episodes only, for example 0-99,120."""
    cameras: str | None = None
    """Train on these cameras only (comma-separated); all by default."""
    rename: tuple[str, ...] = ()
    """Names of the demonstrations and what to call them, as THEIRS=OURS."""
    episodes: int = 30
    """Episodes per task for every run, on the same seeds."""
    eval_seed: int = 100_000
    """Seed of the first episode of each task."""
    sensors_off: str = ""
    """Sensors, with commas between: episodes again without each of them; front+wrist is both at once."""
    knockout: str = ""
    """Expert roles, or gate.modality, gate.content, gate.roles, with commas between: episodes again without each of
    them, for entries that have such experts or such a gate."""
    shuffled: bool = False
    """Episodes again with sentences that name another task."""
    ablation_episodes: int | None = None
    """Episodes per task for each of these, the first ones; as many as --episodes by default."""
    baseline: str = "moe"
    """The label that the others are compared with."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    """Do only every N-th of all runs, beginning with run I (from 0), so that N machines or processes share the work."""
    only_table: bool = False
    """Train and evaluate nothing: show what is in OUT/results (of --entries and --load, or all of it)."""
    per_task: bool = False
    """Also show the success at each task, also with parts switched off."""
    markdown: Path | None = None
    """Write the tables into this file, for a results page."""
    json: bool = False
    """Print everything as JSON to standard output in place of the tables."""
    speed: bool = True
    """Measure speed when all runs are done: all entries in turn, in one process."""
    speed_seconds: float = 5.0
    """Seconds of processor time for each entry and kind of call."""
    threads: int = 1
    """Processor threads for training."""
    workers: int = 1
    """Processes for evaluation. The outcome does not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run."""
