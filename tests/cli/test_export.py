"""``moe-robot export`` keeps nothing that it does not vouch for."""

import numpy as np
import pytest

from moe_policies.policy import MultimodalPolicy
from moe_robot.cli import export, main
from moe_robot.types import Features, FeatureStatistics

SMALL = {"width": 16, "hidden": 16, "stem_channels": 8, "patches": 2, "glimpses": 2, "text": "none"}


@pytest.fixture
def checkpoint(tmp_path):
    sizes = {"observation.images.front": 3, "observation.state": 1, "action": 1}
    statistics = {
        key: FeatureStatistics(np.full(n, 0.4), np.full(n, 0.3), np.zeros(n), np.ones(n), 1) for key, n in sizes.items()
    }
    policy = MultimodalPolicy.from_preset(
        "dense-active", Features({"front": (32, 32)}, ("j1.pos",), ("x",), 10), statistics, **SMALL
    )
    policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_folder_that_holds_something_is_left_alone(checkpoint, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_file_whose_actions_differ_is_not_kept(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "_run_torch", lambda path, manifest: lambda seen: np.full((8, 1), 100.0))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--format", "torch"]) == 1
    assert "the exported actions differ by" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_missing_package_is_named_before_any_work(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda package: None if package == "onnxscript" else True)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 1
    assert "--format onnx lacks onnxscript: pip install 'moe-robot[export]'" in capsys.readouterr().err


def test_a_graph_for_torch_alone_needs_none_of_them(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda package: None)
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), "--out", str(out), "--format", "torch", "--batch", "1"]) == 0
    assert "policy.pt2" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {"export.json", "policy.pt2"}
    deploy = ["deploy", str(out), "--contract", "pitstop", "--instruction", "go"]
    assert main(deploy) == 1
    assert "has no policy.onnx, which is what runs here" in capsys.readouterr().err
