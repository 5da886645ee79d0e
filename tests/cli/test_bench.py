"""``moe-robot bench moe`` measures every layer at every size, and says what it could not measure."""

import json

import numpy as np
import pytest
from torch import nn

from moe_robot.cli import main
from moe_robot.cli.bench.moe import Ratio
from moe_robot.cli.bench.moe_peers import Contender, contenders

SMALL = ["bench", "moe", "--width", "16", "--hidden", "8", "--experts", "4", "--seconds", "0.01"]


def test_each_size_gives_a_forward_and_a_backward_row_with_intervals_over_the_limit_and_the_best_peer(capsys):
    assert main([*SMALL, "--tokens", "1", "24", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["tokens"], row["pass"]) for row in result["rows"]] == [
        (n, kind) for n in (1, 24) for kind in ("forward", "forward+backward")
    ]
    for row in result["rows"]:
        assert row["rounds"] >= 5
        assert row["best_peer"] not in (None, "dense limit", "moe_robot separate", "moe_robot stacked")
        for ratio in (row["over_limit"], row["over_best_peer"], *row["over_limit_of"].values()):
            assert 0 < ratio["low"] <= ratio["high"]
        named = {*row["over_limit_of"], *row["notes"]}
        assert {"plain loop", "transformers eager", "transformers grouped_mm", "st-moe-pytorch"} <= named
    assert result["versions"]["torch"]


def test_the_table_has_the_same_ratios_in_words(capsys):
    assert main([*SMALL, "--tokens", "8", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "T 8, forward:" in printed
    assert "of the limit" in printed
    assert "of the best peer" in printed
    assert "dtype bfloat16" in printed


def test_a_peer_that_does_not_run_in_a_number_format_is_left_out_with_its_reason(capsys, monkeypatch):
    def with_a_picky_one(shape):
        layers, missing = contenders(shape)
        bank = nn.Linear(shape.width, shape.width)
        layers["picky"] = Contender(bank, lambda x_TD: bank(x_TD.float()))
        return layers, missing

    monkeypatch.setattr("moe_robot.cli.bench.moe_peers.contenders", with_a_picky_one)
    for dtype, said in (("float32", None), ("bfloat16", "left out: does not run in bfloat16 (mat1 and mat2")):
        assert main([*SMALL, "--tokens", "8", "--dtype", dtype, "--json"]) == 0
        for row in json.loads(capsys.readouterr().out)["rows"]:
            assert ("picky" in row["over_limit_of"]) == (said is None)
            assert row["notes"].get("picky", "").startswith(said or "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--experts-per-token", "5"], "expected 1 to 4"),
        (["--tokens", "0"], "expected positive numbers"),
        (["--width", "0"], "--width 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(capsys, options, said):
    assert main([*SMALL, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_interval_of_a_ratio_holds_the_true_one_when_noise_is_shared():
    rng = np.random.default_rng(1)
    disturbance = rng.lognormal(sigma=0.5, size=60)
    theirs, mine = disturbance, 1.5 * disturbance * rng.normal(1.0, 0.02, size=60)
    found = Ratio.of(mine, theirs)
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.5
    assert Ratio.of(theirs, theirs) == Ratio(1.0, 1.0, 1.0)
