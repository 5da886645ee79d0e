"""The built wheel: what it holds, and that a robot computer without torch can use the parts meant for it."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROBOT_PACKAGES = ("numpy", "msgpack", "websockets", "PyYAML", "cbor2", "opencv-python-headless")
PACKAGES = ("moe_robot", "moe_envs", "moe_policies")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_is_pure_python_for_every_supported_version(wheel):
    assert wheel.name == f"moe_robot-{version('moe-robot')}-py3-none-any.whl"


def test_the_wheel_holds_every_module_of_the_three_packages_and_nothing_beside_them(names):
    sources = {"moe_robot": ROOT, "moe_envs": ROOT / "envs", "moe_policies": ROOT / "policies"}
    modules = {
        str(file.relative_to(folder))
        for package, folder in sources.items()
        for file in (folder / package).rglob("*.py")
    }
    assert modules == {name for name in names if name.endswith(".py")}
    assert {name.split("/")[0] for name in names} - {f"moe_robot-{version('moe-robot')}.dist-info"} == set(PACKAGES)


def test_the_wheel_names_its_command_its_worlds_and_its_policies(wheel, names):
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry).decode()
    assert "moe-robot = moe_robot.cli:main" in text
    assert "[gymnasium.envs]" in text
    assert "[moe_robot.policies]" in text


def test_the_wheel_carries_the_licence(wheel, names):
    (licence,) = (name for name in names if name.endswith("licenses/LICENSE"))
    assert zipfile.ZipFile(wheel).read(licence) == (ROOT / "LICENSE").read_bytes()
    (metadata,) = (name for name in names if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in zipfile.ZipFile(wheel).read(metadata).decode()


@pytest.fixture(scope="module")
def robot_computer(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel, the six packages of a robot computer, and nothing else."""
    uv = shutil.which("uv") or str(ROOT / ".venv-bootstrap/bin/uv")
    folder = tmp_path_factory.mktemp("robot") / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    pins = [f"{package}=={version(package)}" for package in ROBOT_PACKAGES]
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(folder / "bin/python"), str(wheel), *pins]
    if (
        subprocess.run([*install, "--offline"], cwd=folder, capture_output=True).returncode != 0
    ):  # uv's cache was emptied
        subprocess.run(install, cwd=folder, check=True)
    return folder / "bin/python"


def _run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` away from the checkout, with nothing but the environment's own packages on the path."""
    return subprocess.run([python, "-I", "-c", code], cwd=python.parent, capture_output=True, text=True)


@pytest.mark.parametrize(
    "module",
    [
        "types", "registry", "kinematics", "words", "cli", "deploy", "deploy.contract", "deploy.safety", "deploy.guard",
        "deploy.loop", "deploy.inference", "deploy.checkpoint", "deploy.exported", "deploy.backends.rosbridge",
        "deploy.backends.fake", "deploy.backends.ros2", "deploy.transport", "deploy.policy_node", "deploy.client",
    ],
)  # fmt: skip
def test_a_robot_computer_without_torch_can_import(robot_computer, module):
    done = _run(
        robot_computer, f"import moe_robot.{module} as m, sys; assert 'torch' not in sys.modules; print(m.__file__)"
    )
    assert done.returncode == 0, done.stderr
    assert str(robot_computer.parents[1]) in done.stdout


def test_a_robot_computer_reads_the_shipped_contract(robot_computer):
    code = "from moe_robot.deploy.contract import load_contract; print(load_contract('pitstop').robot)"
    assert _run(robot_computer, code).stdout == "pitstop\n"


def test_a_client_of_the_policy_server_needs_three_packages_only(robot_computer):
    others = ["PyYAML", "cbor2", "opencv-python-headless"]
    modules = {"PyYAML": "yaml", "opencv-python-headless": "cv2"}
    block = "".join(f"sys.modules[{modules.get(name, name)!r}] = None; " for name in others)
    done = _run(robot_computer, f"import sys; {block}from moe_robot.deploy.client import RemotePolicy; print('ready')")
    assert done.stdout == "ready\n", done.stderr


def test_the_robot_computer_of_these_tests_has_no_torch(robot_computer):
    assert "No module named 'torch'" in _run(robot_computer, "import torch").stderr


def test_the_command_answers_on_a_robot_computer(robot_computer):
    done = subprocess.run([robot_computer.parent / "moe-robot", "--version"], capture_output=True, text=True)
    assert done.stdout == f"moe-robot {version('moe-robot')}\n"
