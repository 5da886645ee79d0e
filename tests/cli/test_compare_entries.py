"""Entries of a comparison as they are written on the command line."""

from pathlib import Path

import pytest

from moe_robot.cli.compare_entries import parse_checkpoints, parse_entries
from moe_robot.types import UserError


def test_a_preset_is_its_own_label():
    (entry,) = parse_entries(["dense-active"])
    assert (entry.label, entry.preset, entry.config, entry.line) == ("dense-active", "dense-active", (), "dense-active")


def test_settings_go_to_the_policy_and_training_options_to_the_training():
    (entry,) = parse_entries(["small=moe:hidden=64,learning_rate=5e-4,experts={vision: 2, arm: 1},ignore_state=[a,b]"])
    assert entry.label == entry.line == "small"
    assert entry.preset == "moe"
    assert entry.config == ("hidden=64", "experts={vision: 2, arm: 1}", "ignore_state=[a,b]")
    assert entry.training == {"learning_rate": 5e-4}


def test_settings_without_a_label_make_one_that_is_a_file_name():
    (entry,) = parse_entries(["moe:hidden=64,experts={vision: 2, arm: 1}"])
    assert entry.label == "moe-hidden64-expertsvision2arm1"


def test_a_sweep_multiplies_every_entry_and_keeps_its_line():
    entries = parse_entries(["moe", "thin=dense-active:layers=3"], "hidden=32,64")
    assert [(e.label, e.line, e.config) for e in entries] == [
        ("moe-hidden32", "moe", ("hidden=32",)),
        ("moe-hidden64", "moe", ("hidden=64",)),
        ("thin-hidden32", "thin", ("layers=3", "hidden=32")),
        ("thin-hidden64", "thin", ("layers=3", "hidden=64")),
    ]


def test_checkpoints_are_entries_of_their_own():
    (entry,) = parse_checkpoints(["ours=runs/mine"])
    assert (entry.label, entry.checkpoint) == ("ours", Path("runs/mine"))


@pytest.mark.parametrize(
    ("entries", "sweep", "message"),
    [
        (["=moe"], None, "expected .LABEL=.PRESET"),
        (["moe:"], None, "expected .LABEL=.PRESET"),
        (["small="], None, "expected .LABEL=.PRESET"),
        (["moe:hidden"], None, "expected key=value after the colon, not 'hidden'"),
        (["moe:learning_rate=fast"], None, "learning_rate is 'fast', expected a number"),
        (["moe:batch_size=6.5"], None, "batch_size is '6.5', expected a number"),
        (["a/b=moe"], None, "label 'a/b': expected letters"),
        (["..=moe"], None, "label '..': expected letters"),
        (["-x=moe"], None, "label '-x': expected letters"),
        (["moe", "moe"], None, "two entries are called 'moe'"),
        (["moe"], "hidden", "--sweep 'hidden': expected KEY=VALUE"),
        (["moe"], "hidden=", "--sweep 'hidden=': expected KEY=VALUE"),
        (["moe"], "hidden=64,64", "two entries are called 'moe-hidden64'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(entries, sweep, message):
    with pytest.raises(UserError, match=message):
        parse_entries(entries, sweep)


@pytest.mark.parametrize("pair", ["runs/mine", "=runs/mine", "ours=", "a b=runs/mine"])
def test_a_checkpoint_needs_a_label_and_a_path(pair):
    with pytest.raises(UserError, match=r"LABEL=CHECKPOINT|label 'a b'"):
        parse_checkpoints([pair])
