"""The entries of ``moe-robot compare``: ``[LABEL=]PRESET[:key=value,...]``, sweeps, and checkpoints made elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moe_robot.training.config import TrainConfig
from moe_robot.types import UserError

TRAINING = ("learning_rate", "gate_rate", "batch_size", "warmup", "weight_decay", "clip", "ema")
"""Keys that are options of the training; all others are settings of the policy, as ``train --config`` takes them."""


@dataclass(frozen=True)
class Entry:
    """One policy of a comparison, to be trained with every seed or loaded.

    Attributes:
        label: its name in tables and files.
        preset: the preset to train; "" for a checkpoint.
        config: policy settings as ``key=value``.
        training: options of the training that differ from the defaults.
        line: the label without the sweep: entries of one line make one curve.
        checkpoint: evaluate this in place of training.
    """

    label: str
    preset: str
    config: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""
    checkpoint: Path | None = None


def parse_entries(entries: Sequence[str], sweep: str | None = None) -> list[Entry]:
    """Entries as they are given, each multiplied by the sweep ``key=value,value,...``.

    Raises:
        UserError: what cannot be read, a label that is no file name, or the same label twice.
    """
    found = [_parse(text) for text in entries]
    if sweep is not None:
        key, equals, values = sweep.partition("=")
        points = _split(values)
        if not (key and equals and points):
            raise UserError(f"--sweep {sweep!r}: expected KEY=VALUE,VALUE,..., for example hidden=32,64,128")
        found = [_with(entry, f"{key}={value}", f"{key}{value}") for entry in found for value in points]
    _check_labels(entry.label for entry in found)
    return found


def parse_checkpoints(pairs: Sequence[str]) -> list[Entry]:
    """Entries from ``label=CHECKPOINT``; one label may have several, of different training seeds."""
    found = []
    for pair in pairs:
        label, equals, path = pair.partition("=")
        if not (label and equals and path):
            raise UserError(f"--load {pair!r}: expected LABEL=CHECKPOINT, for example moe=runs/mine")
        _check_labels([label])
        found.append(Entry(label, "", line=label, checkpoint=Path(path)))
    return found


def _parse(text: str) -> Entry:
    head, colon, tail = text.partition(":")
    label, equals, preset = head.rpartition("=")
    settings = _split(tail)
    if not preset or (equals and not label) or (colon and not settings):
        raise UserError(
            f"entry {text!r}: expected [LABEL=]PRESET[:key=value,...], for example small=moe:hidden=64,layers=2"
        )
    entry = Entry(label or preset, preset, line=label or preset)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals):
            raise UserError(f"entry {text!r}: expected key=value after the colon, not {setting!r}")
        entry = _with(entry, setting, "" if label else key + value)
    return replace(entry, line=entry.label)


def _with(entry: Entry, setting: str, mark: str) -> Entry:
    """The entry with one more setting; ``mark`` goes into its label, without what a file name cannot hold."""
    mark = re.sub(r"[^A-Za-z0-9._]+", "", mark)
    entry = replace(entry, label=f"{entry.label}-{mark}" if mark else entry.label)
    key, _, value = setting.partition("=")
    if key in TRAINING:
        kind = type(getattr(TrainConfig, key))
        try:
            return replace(entry, training={**entry.training, key: kind(value)})
        except ValueError:
            raise UserError(f"entry {entry.label}: {key} is {value!r}, expected a number ({kind.__name__})") from None
    return replace(entry, config=(*entry.config, setting))


def _split(text: str) -> list[str]:
    """Parts between commas; those inside brackets and braces stay together."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _check_labels(labels: Iterable[str]) -> None:
    seen: set[str] = set()
    for label in labels:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", label):
            raise UserError(
                f"label {label!r}: expected letters, digits, '.', '_' and '-' (it names files); give LABEL=PRESET:..."
            )
        if label in seen:
            raise UserError(f"two entries are called {label!r}: give one of them another label, LABEL=PRESET:...")
        seen.add(label)
