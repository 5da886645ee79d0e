"""``moe-robot demo``: what it refuses, and that it goes on where it stopped."""

import json

import pytest

from moe_robot.cli import demo, train
from moe_robot.types import UserError


@pytest.fixture
def steps(monkeypatch):
    """The three steps replaced by ones that only note that they ran; the real ones are tested end to end."""
    ran: list[str] = []
    monkeypatch.setattr(demo, "_collect", lambda options: ran.append("collect") or 0)
    monkeypatch.setattr(demo, "_train", lambda options: ran.append("train") or 0)
    monkeypatch.setattr(demo, "evaluate", lambda options: ran.append("evaluate") or 0)
    return ran


def test_the_steps_run_in_order_and_each_says_how_long_it_took(steps, tmp_path, capsys):
    assert demo.run(demo.Options(out=tmp_path)) == 0
    assert steps == ["collect", "train", "evaluate"]
    assert "minutes: collecting 0.0, training 0.0, evaluating 0.0" in capsys.readouterr().out


def test_the_same_options_go_on_and_the_number_of_workers_is_free(steps, tmp_path):
    demo.run(demo.Options(out=tmp_path, workers=1))
    demo.run(demo.Options(out=tmp_path, workers=2))
    assert steps == ["collect", "train", "evaluate"] * 2


@pytest.mark.parametrize(
    ("changed", "option"), [({"seed": 1}, "--seed 0"), ({"episodes_per_task": 3}, "--episodes-per-task 400")]
)
def test_a_folder_with_another_demo_is_refused(steps, tmp_path, changed, option):
    demo.run(demo.Options(out=tmp_path))
    with pytest.raises(UserError, match=option):
        demo.run(demo.Options(out=tmp_path, **changed))
    assert len(steps) == 3


@pytest.mark.parametrize("how", ["status", "exception"])
def test_an_interrupted_step_stops_the_demo_and_says_that_it_can_go_on(steps, tmp_path, monkeypatch, how):
    def interrupted(options):
        if how == "exception":
            raise KeyboardInterrupt
        return 130

    monkeypatch.setattr(demo, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        demo.run(demo.Options(out=tmp_path))
    assert steps == ["collect"]


def test_a_checkpoint_whose_record_is_unfinished_is_not_taken_for_trained(tmp_path):
    record = tmp_path / "checkpoint" / "train.json"
    assert not train.is_trained(tmp_path)
    record.parent.mkdir()
    record.write_text(json.dumps({"complete": False}))
    assert not train.is_trained(tmp_path)
    record.write_text(json.dumps({"complete": True}))
    assert train.is_trained(tmp_path)


def test_a_report_of_another_checkpoint_is_made_again(tmp_path):
    weights = tmp_path / "policy" / "checkpoint" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    weights.with_name("config.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    empty_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "report.json").write_text(json.dumps({"checkpoint_sha256": empty_sha256}))
    assert demo.is_reported(tmp_path, tmp_path / "policy")
    weights.write_bytes(b"other weights")
    assert not demo.is_reported(tmp_path, tmp_path / "policy")
