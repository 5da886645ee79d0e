"""One page of training options; the field docstrings are the help of ``moe-robot train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run. Resuming checks that nothing that shapes the result has changed."""

    data: Path
    """Folder of demonstrations in LeRobot's v3 format, whoever wrote it, or a YAML file that mixes several
    (docs/data.md)."""
    out: Path
    """Folder of the run; the policy is saved in OUT/checkpoint."""
    preset: str = "moe"
    """Policy preset: moe, switch, glam, shared, jacobs1991, typed, random, dense-active, dense-total, or one that
    another package brings."""
    upcycle: Path | None = None
    """Checkpoint of a trained dense policy: begin with a mixture whose experts all are its networks, in place of a
    fresh one of the preset; --config then gives the mixture's settings."""
    finetune: Path | None = None
    """Checkpoint or run of a trained policy: go on with its weights, settings and normalisation, perhaps on other
    demonstrations, in place of a fresh one of the preset. A --learning-rate below the default forgets less."""
    steps: int | None = None
    """Train for this many optimiser steps (deterministic on a CPU: same seed, same losses)."""
    minutes: float | None = None
    """Or train for this many minutes of wall time; the learning rate then follows the clock."""
    seed: int = 0
    """Seed of weights, sampling and augmentation."""
    resume: bool = False
    """Go on from where the run in OUT stopped."""
    no_text: bool = False
    """Train a policy that cannot read: the blind baseline."""
    tasks: str | None = None
    """Train on these tasks or groups of the data set only (comma-separated); all by default."""
    episodes: str | None = None
    """Train on these episodes only, for example 0-99,120."""
    cameras: str | None = None
    """Train on these cameras only (comma-separated); all by default."""
    rename: tuple[str, ...] = ()
    """Names of the data set and what to call them, as THEIRS=OURS: features, cameras, entries of state and action."""
    stream: bool = False
    """Decode pictures when they are needed, without a cache on the disk: slower, for data that is larger than it."""
    batch_size: int = 64
    """Samples per step, of all processes together."""
    accumulate: int = 1
    """Work through each batch in so many parts, one after the other, for less memory; a gate's losses are then of each
    part."""
    expert_parallel: int = 1
    """Under torchrun: divide the experts among groups of so many processes, and send the tokens to them; 1 keeps all
    experts in every process."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; warm-up, then cosine to 2 % of it."""
    gate_rate: float = 0.1
    """Gates learn at this fraction of the learning rate. All tokens of a modality push a gate's few weights the same
    way, so at the full rate Adam carries whole modalities across experts within a dozen steps, before they have learned
    anything."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 1e-2
    """Weight decay of matrices; vectors (norms, biases, embeddings) have none."""
    clip: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones that are saved for use."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """Arithmetic of the network; auto is bf16 where the processor has it, fp64 is for comparing runs."""
    threads: int = 1
    """Processor threads; 0 for one per core. At this size two threads train a fifth faster than one on idle cores, and
    several times slower when anything else wants them."""
    device: str = "auto"
    """auto, cpu or cuda."""
    save_every: float = 60.0
    """Seconds between saved states, from which an interrupted run resumes."""
    keep: int = 2
    """Saved states that are kept, the newest."""
    config: tuple[str, ...] = ()
    """Policy settings as key=value, for example --config layers=2 text=bundled:minilm."""
