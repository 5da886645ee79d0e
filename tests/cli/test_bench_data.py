"""`bench data`: every job is measured, and a peer that is not there is one line."""

import pytest

from moe_robot.cli import main
from moe_robot.cli.bench import data as bench_data
from moe_robot.types import UserError


def test_every_job_is_measured_on_what_it_wrote(monkeypatch):
    monkeypatch.setattr(bench_data, "EPISODES", 2)
    monkeypatch.setattr(bench_data, "LENGTH", 20)
    monkeypatch.setattr(bench_data, "MANY_EPISODES", 5)
    result = bench_data.measure(16, 1, None, batches=2)
    rates = {name: value for name, value in result.items() if name.endswith("frames/s")}
    assert {name.split(",")[0] for name in rates} == {
        "write png", "write h264", "read from cache", "read png without cache", "read h264 without cache"
    }  # fmt: skip
    assert all(value > 0 for value in rates.values())
    assert "--peer" in result["lerobot"]


def test_a_peer_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot be run"):
        bench_data.measure(16, 1, tmp_path / "python")
    assert main(["bench", "data", "--size", "16", "--peer", "/bin/true"]) == 1
