"""An exported policy: the same actions over an episode, without torch, and deployed like any other."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_policies.policy import MultimodalPolicy
from moe_robot.cli import main
from moe_robot.deploy.checkpoint import load_act
from moe_robot.deploy.contract import load_contract
from moe_robot.deploy.exported import ExportedPolicy
from moe_robot.registry import load_policy, make_environment
from moe_robot.types import FeatureStatistics, Observation, UserError

ROOT = Path(__file__).parents[2]
INSTRUCTION = "pick up the red cube"
SMALL = {"width": 32, "hidden": 24, "stem_channels": 8, "patches": 3, "glimpses": 2}
TIE = 1e-5
"""Logits of two experts that are nearer than this may change places between two ways to compute them."""


@pytest.fixture(scope="module")
def episode() -> list[Observation]:
    """What the cameras and joints told while the scripted expert did its task."""
    env = make_environment("pitstop")
    try:
        seen, _ = env.reset(seed=5, options={"task": "pick_red_cube"})
        expert, found, over = env.unwrapped.make_expert("pick_red_cube"), [], False
        while not over:
            found.append(Observation.from_gymnasium(seen, INSTRUCTION))
            seen, _, terminated, truncated, _ = env.step(expert.act())
            over = terminated or truncated
    finally:
        env.close()
    return found


@pytest.fixture(scope="module")
def checkpoint(episode, tmp_path_factory) -> Path:
    """A policy of random weights that sees well: normalised by the episode, with a gate that makes up its mind."""
    features = load_contract("pitstop").features()
    states = np.stack([o.state for o in episode])
    pictures = {camera: np.stack([o.images[camera] for o in episode]) / 255 for camera in features.cameras}
    n = len(features.action_names)
    statistics = {
        "observation.state": FeatureStatistics(states.mean(0), states.std(0), states.min(0), states.max(0), 1),
        "action": FeatureStatistics(np.zeros(n), np.full(n, 0.5), np.zeros(n), np.ones(n), 1),
    }
    for camera, x in pictures.items():
        mean, std = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
        statistics[f"observation.images.{camera}"] = FeatureStatistics(mean, std, np.zeros(3), np.ones(3), 1)
    torch.manual_seed(1)
    policy = MultimodalPolicy.from_preset("moe", features, statistics, [INSTRUCTION, "press the button"], **SMALL)
    for layer in policy.network.moe_layers:
        layer.router.weight_ED.data *= 10
    policy.save_pretrained(folder := tmp_path_factory.mktemp("policy"))
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "policy"
    assert main(["export", str(checkpoint), "--out", str(out), "--format", "both"]) == 0
    return out


def narrowest_choice(policy: MultimodalPolicy) -> float:
    """By how much the last expert that a token visited was ahead of the first that it did not, of all tokens."""
    gaps = []
    for plan in (plan for of_layer in policy.latest_plans for plan in of_layer):
        k = plan.experts_per_token
        top = plan.logits_TE.topk(k + 1, dim=-1).values
        gaps.append(float((top[:, k - 1] - top[:, k]).min()))
    return min(gaps)


def test_over_a_whole_episode_onnxruntime_gives_the_actions_of_torch(episode, checkpoint, folder):
    policy, exported = load_policy(checkpoint), ExportedPolicy(folder)
    differences, plans = [], []
    for seen in episode:
        plans.append(policy.action_chunk(seen))
        difference = np.abs(exported.action_chunk(seen) - plans[-1]).max()
        differences.append(difference if narrowest_choice(policy) > TIE else 0.0)
    assert max(differences) < 1e-4
    assert np.count_nonzero(differences) > 0.8 * len(episode) > 8
    assert np.std(plans, axis=0).max() > 0.01  # it does look


def test_the_manifest_says_what_the_file_is(checkpoint, folder):
    told, policy = json.loads((folder / "export.json").read_text()), load_policy(checkpoint)
    assert told["features"] == policy.features.to_json()
    assert (told["chunk"], told["execute"], told["batch"]) == (8, 2, "dynamic")
    assert told["inputs"][-2:] == ["observation.state", "task"]
    assert told["vocabulary"]["cube"] >= 2
    assert len(told["origin"]["checkpoint_sha256"]) == 64
    assert told["origin"]["versions"]["onnxruntime"] == version("onnxruntime")
    assert {file.name for file in folder.iterdir()} == {"export.json", "policy.onnx", "policy.pt2"}


WITHOUT_TORCH = """
import sys
import numpy as np
from functools import partial
from pathlib import Path
from moe_robot.deploy.checkpoint import load_act
from moe_robot.deploy.contract import load_contract
from moe_robot.types import Observation

act = load_act(Path(sys.argv[1]), load_contract("pitstop"), "pick up the red cube")
given = np.load(sys.argv[2])
images = {name: given[name] for name in ("front", "wrist")}
np.save(sys.argv[3], act(Observation(images, given["state"], "pick up the red cube")))
loaded = {"torch", "transformers", "onnx", "mujoco"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.fixture
def no_torch(tmp_path) -> dict[str, str]:
    """Environment variables with which Python finds a torch that cannot be imported."""
    (tmp_path / "barred").mkdir()
    (tmp_path / "barred/torch.py").write_text("raise ImportError('there is no torch here')")
    path = os.pathsep.join(filter(None, [str(tmp_path / "barred"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def acts_without_torch(command: list, environment: dict, episode, checkpoint, folder, tmp_path: Path) -> None:
    seen = episode[len(episode) // 2]
    np.savez(tmp_path / "seen.npz", state=seen.state, **seen.images)
    files = [folder, tmp_path / "seen.npz", tmp_path / "actions.npy"]
    arguments = [*command, "-c", WITHOUT_TORCH, *map(str, files)]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(files[-1]), load_policy(checkpoint).action_chunk(seen), atol=1e-4)


def test_deployment_runs_it_where_torch_cannot_be_imported(episode, checkpoint, folder, no_torch, tmp_path):
    acts_without_torch([sys.executable], no_torch, episode, checkpoint, folder, tmp_path)


@pytest.mark.full
def test_a_robot_computer_needs_numpy_yaml_and_onnxruntime(episode, checkpoint, folder, tmp_path):
    uv = shutil.which("uv") or str(ROOT / ".venv-bootstrap/bin/uv")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    python = tmp_path / "venv/bin/python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "--no-deps", str(wheel)], cwd=tmp_path, check=True)
    pins = [f"{package}=={version(package)}" for package in ("numpy", "PyYAML", "onnxruntime")]
    subprocess.run([*install, *pins], cwd=tmp_path, check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    acts_without_torch([str(python), "-I"], clean, episode, checkpoint, folder, tmp_path)


def test_deploy_takes_the_folder_and_checks_it_against_the_contract(folder, tmp_path, capsys):
    text = (ROOT / "moe_robot/deploy/contracts/pitstop.yaml").read_text(encoding="utf-8")
    (tmp_path / "other.yaml").write_text(text.replace("hand.dyaw", "hand.turn"), encoding="utf-8")
    deploy = ["deploy", str(folder), "--instruction", INSTRUCTION]
    assert main([*deploy, "--contract", str(tmp_path / "other.yaml")]) == 1
    assert "action 3 is 'hand.turn', expected 'hand.dyaw'" in capsys.readouterr().err
    nobody = ["--address", "ws://127.0.0.1:9", "--seconds", "0.2"]
    assert main([*deploy, "--contract", "pitstop", *nobody]) == 1
    told = capsys.readouterr()
    assert f"{folder} fits" in told.out
    assert "no connection" in told.err


def test_what_does_not_fit_the_graph_is_refused_by_name(episode, folder, pitstop):
    act, seen = load_act(folder, pitstop, INSTRUCTION), episode[0]
    for wrong, reason in (
        (Observation({"front": seen.images["front"]}, seen.state, INSTRUCTION), "lacks camera 'wrist'"),
        (Observation({**seen.images, "front": seen.images["front"][::2]}, seen.state, INSTRUCTION), "expected uint8"),
        (Observation(seen.images, seen.state[:-1], INSTRUCTION), "the state has shape"),
        (Observation(seen.images, None, INSTRUCTION), "the state has shape None"),
        (Observation(seen.images, seen.state, None), "no instruction"),
    ):
        with pytest.raises(UserError, match=reason):
            act(wrong)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("export.json", "{", "not what moe-robot export writes"),
        ("export.json", '{"format": 99}', "update moe-robot"),
        ("export.json", '{"format": 1}', "not what moe-robot export writes"),
        ("policy.onnx", "no graph", "onnxruntime cannot load"),
        ("policy.onnx", None, "has no policy.onnx"),
    ],
)
def test_a_damaged_export_is_refused_in_one_line(folder, tmp_path, name, content, reason):
    shutil.copytree(folder, tmp_path / "copy")
    if content is None:
        (tmp_path / "copy" / name).unlink()
    else:
        (tmp_path / "copy" / name).write_text(content)
    with pytest.raises(UserError, match=reason) as refusal:
        ExportedPolicy(tmp_path / "copy")
    assert "\n" not in str(refusal.value)


def test_a_policy_that_was_cut_out_follows_its_one_sentence(folder, episode, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    told = json.loads((folder / "export.json").read_text())
    (tmp_path / "copy/export.json").write_text(json.dumps(told | {"only_instruction": "press the button"}))
    with pytest.raises(UserError, match="was cut out for 'press the button'"):
        ExportedPolicy(tmp_path / "copy").action_chunk(episode[0])
