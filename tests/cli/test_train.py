"""``moe-robot train``: what the verb adds to the training loop."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_robot.cli.train import with_tasks_named
from moe_robot.training.config import TrainConfig


@pytest.mark.parametrize("provenance", [{}, {"environment": "pitstop", "options": {"objects": "all"}}])
def test_groups_of_tasks_are_those_of_the_environment_that_the_data_came_from(monkeypatch, provenance):
    monkeypatch.setattr("moe_robot.data.layout.read_info", lambda folder: SimpleNamespace(provenance=provenance))
    options = TrainConfig(data=Path("data"), out=Path("out"), tasks="press_red,newcombos")
    named = with_tasks_named(options)
    if provenance:
        assert named.tasks.split(",")[:2] == ["press_red", "pick_purple_nut"]
    else:
        assert named == options  # a stranger's data: its sentences are all there is
