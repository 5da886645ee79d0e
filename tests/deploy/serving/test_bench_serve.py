"""``moe-robot bench serve``: real robots ask a real server, and what they experienced is told and drawn."""

import asyncio
import json
import math

import pytest
from robots import seen_by

from moe_robot.cli import main
from moe_robot.cli.bench import serve as bench_serve
from moe_robot.cli.bench.serve_plot import plot
from moe_robot.deploy.serving.wire import pack
from moe_robot.registry import presets

FRAMES = [pack(seen_by(i)) for i in range(4)]


@pytest.fixture
def result(tmp_path, write, monkeypatch):
    """Of a policy that takes 20 ms a pass, however many robots are in it."""
    monkeypatch.setattr(bench_serve, "PRESETS", ("mirror",))
    write(tmp_path / "mirror", delay_s=0.02)
    rows: list[dict] = []
    sweep = bench_serve._sweep(tmp_path, [1, 12], [0, 5], 50.0, 1.5, 1, FRAMES, rows.append)
    assert asyncio.run(sweep) == rows
    return {
        "rows": rows,
        "rate_hz": 50.0,
        "over_one_by_one": bench_serve._gains(rows),
        "machine": {"cores": 2},
        "load": {"start": 0, "end": 0},
    }


def test_every_way_is_measured_for_every_fleet_and_batches_carry_more_than_one_by_one(result):
    rows = {(row["way"], row["robots"]): row for row in result["rows"]}
    assert set(rows) == {(way, n) for way in ("one by one", "window 0 ms", "window 5 ms") for n in (1, 12)}
    for row in rows.values():
        assert row["p95_ms"] >= row["p50_ms"] > 20
        assert row["policy_cpu_ms"] >= 0
        assert "answers/s" in bench_serve.line_of(row)
    assert rows["one by one", 12]["batch"] == 1
    assert rows["window 5 ms", 12]["batch"] > 2
    assert result["over_one_by_one"]["mirror"]["12"] > 2  # a pass of many takes no longer than one of these


def test_the_picture_has_a_panel_per_preset_with_a_line_per_way(result, tmp_path):
    figure = plot(result, tmp_path / "serve.png")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines][:3] == ["one by one", "window 0 ms", "window 5 ms"]
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_that_cannot_be_are_refused_in_one_line(capsys):
    assert main(["bench", "serve", "--rate", "0"]) == 1
    assert "expected positive numbers" in capsys.readouterr().err


@pytest.mark.full
def test_the_command_measures_the_mixture_beside_the_dense_network(capsys, tmp_path):
    options = ["--robots", "1", "8", "--windows", "5", "--seconds", "1", "--repeats", "1"]
    assert main(["bench", "serve", *options, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out/serve.json").read_text())
    assert {row["preset"] for row in result["rows"]} == {"moe", "dense-active"}
    assert len(result["rows"]) == 8
    for of in result["network"].values():
        assert all(ms > 0 and math.isfinite(ms) for ms in of["cpu_ms_per_plan"].values())
    assert (tmp_path / "out/serve.png").is_file()


def test_a_policy_that_cannot_be_trained_here_leaves_our_presets_alone(mirror):
    ours = presets()
    assert {"moe", "dense-active"} <= ours.keys()
    assert mirror.MirrorPolicy not in ours.values()
