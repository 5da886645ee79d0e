"""The mean over tasks and the mean over tiers are two numbers, and both are printed."""

import io
import json

import pytest
from rich.console import Console

from moe_robot.evaluation import evaluate
from moe_robot.evaluation.table import print_report
from moe_robot.evaluation.tiers import tier_summary

TIERS = {"easy": ("a", "b", "c"), "hard": ("d",), "very_hard": ("e", "f")}


def outcomes(**rates):
    return {task: [True] * rate + [False] * (10 - rate) for task, rate in rates.items()}


def test_every_task_weighs_alike_in_one_mean_and_every_tier_in_the_other():
    summary = tier_summary(TIERS, outcomes(a=10, b=8, c=6, d=2, e=1, f=0))
    assert {tier: row["success_rate"] for tier, row in summary["tiers"].items()} == pytest.approx(
        {"easy": 0.8, "hard": 0.2, "very_hard": 0.05}
    )
    assert summary["task_mean"]["success_rate"] == pytest.approx((1.0 + 0.8 + 0.6 + 0.2 + 0.1 + 0.0) / 6)
    assert summary["tier_mean"]["success_rate"] == pytest.approx((0.8 + 0.2 + 0.05) / 3)
    for row in (*summary["tiers"].values(), summary["task_mean"], summary["tier_mean"]):
        assert row["ci95"][0] <= row["success_rate"] <= row["ci95"][1]


def test_only_what_was_played_counts():
    summary = tier_summary(TIERS, outcomes(a=10, d=0))
    assert set(summary["tiers"]) == {"easy", "hard"}
    assert summary["tiers"]["easy"]["tasks"] == 1
    assert summary["tier_mean"]["tiers"] == 2
    assert summary["tier_mean"]["success_rate"] == pytest.approx(0.5)


@pytest.mark.parametrize("tiers", [{}, {"easy": ("a",)}])
def test_without_tiers_for_all_tasks_there_is_no_mean_of_them(tiers):
    assert tier_summary(tiers, outcomes(a=1, z=2)) == {"tiers": {}, "task_mean": None, "tier_mean": None}


def test_an_environment_with_tiers_gets_them_in_every_report(checkpoint, tmp_path, signpost, monkeypatch):
    tiers = {"easy": ("go_left", "go_right"), "hard": ("go_up",)}
    monkeypatch.setattr(signpost.SignpostEnv, "task_tiers", tiers, raising=False)
    evaluate(checkpoint, out=tmp_path / "out", episodes=4)
    text = (tmp_path / "out" / "report.json").read_text()
    report, page = json.loads(text), (tmp_path / "out" / "report.html").read_text()
    easy, hard = (report["tiers"][tier]["success_rate"] for tier in ("easy", "hard"))
    assert report["tier_mean"]["success_rate"] == pytest.approx((easy + hard) / 2)
    printed = io.StringIO()
    print_report(text, Console(file=printed, width=120))
    for said in ("tier easy, 2 tasks", "mean of 3 tasks", "mean of 2 tiers"):
        assert said in printed.getvalue()
        assert said in page
