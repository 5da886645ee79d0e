"""``moe-robot bench deploy``, short: that what it says was measured."""

import json

import pytest

from moe_robot.cli import main
from moe_robot.cli.bench import deploy as bench_deploy


def test_every_number_is_there_and_frames_are_answered(monkeypatch, capsys):
    monkeypatch.setattr(bench_deploy, "GATE_STEPS", 50)
    monkeypatch.setattr(bench_deploy, "outage", lambda *_: 0)
    assert main(["bench", "deploy", "--seconds", "1", "--repeats", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    ours = result["picture to command"][bench_deploy.OURS]
    assert 0 < ours["answered"] <= ours["frames"] <= 31
    assert 0 < ours["p50_ms"] <= ours["p99_ms"] <= ours["max_ms"]
    assert result["gate"]["p50_us"] > 0
    assert result["loop"][bench_deploy.OURS]["steps"] > 0
    assert "no rclpy" in result["ROS 2"]
    lines = bench_deploy.table_lines(result)
    assert any(line.startswith("picture to command · moe_robot, CBOR · p50_ms") for line in lines)


@pytest.mark.parametrize("peer", ["/nowhere/python", "/bin/true"])
def test_a_peer_that_cannot_run_is_told_in_one_line(monkeypatch, capsys, peer):
    monkeypatch.setattr(bench_deploy, "GATE_STEPS", 50)
    monkeypatch.setattr(bench_deploy, "jitter", lambda seconds, native: {})
    monkeypatch.setattr(bench_deploy, "OURS", bench_deploy.PEER)  # so that only the peer is asked
    assert main(["bench", "deploy", "--seconds", "0.5", "--repeats", "1", "--peer", peer]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
