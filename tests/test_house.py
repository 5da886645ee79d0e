"""The house: the lock, the set-up commands and what continuous integration runs."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-uv.lock", "requirements-ros.lock")
COMMANDS = ("demo", "test")


def _pins(lock: str) -> dict[str, list[str]]:
    """Requirement line -> its hashes."""
    pins: dict[str, list[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            pins[line.rstrip(" \\")] = []
        elif "--hash=" in line:
            pins[next(reversed(pins))].append(line.strip(" \\"))
    return pins


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_pinned_and_hashed(lock):
    pins = _pins(lock)
    assert pins
    for line, hashes in pins.items():
        assert re.match(r"^[\w.-]+==[\w.]+( ; .*)?$", line), line
        assert hashes, line
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), line


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_index_no_address_and_no_path(lock):
    assert not re.search(r"://|--index|--find-links|--extra|file:|/home/|/tmp/", (ROOT / lock).read_text())


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_one_version_of_every_package(lock):
    names = [Requirement(line).name for line in _pins(lock)]
    assert len(names) == len(set(names))


def test_the_environment_of_ros_holds_what_is_asked_for_and_what_both_have_is_the_same():
    locked, ros = (
        {r.name: str(r.specifier) for r in map(Requirement, _pins(lock))}
        for lock in ("requirements.lock", "requirements-ros.lock")
    )
    for requirement in map(Requirement, PROJECT["dependency-groups"]["ros"]):
        assert ros[requirement.name] == str(requirement.specifier), f"{requirement} is not locked: run scripts/lock"
    differing = {name for name in locked.keys() & ros.keys() if locked[name] != ros[name]}
    assert differing == {"setuptools"}  # colcon takes none that is so new


def test_the_lock_satisfies_everything_that_the_project_asks_for():
    locked = {r.name: next(iter(r.specifier)).version for r in map(Requirement, _pins("requirements.lock"))}
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, [*project["dependencies"], *(line for extra in extras for line in extra)]):
        name = requirement.name.lower()
        assert name in locked, f"{requirement} is not locked: run scripts/lock"
        assert requirement.specifier.contains(locked[name]), f"{requirement}, but locked is {locked[name]}"


def test_the_locked_mujoco_is_the_one_that_meta_world_shares():
    assert any(line.startswith("mujoco==3.3.0 ") for line in _pins("requirements.lock"))


def test_the_licence_is_the_one_that_the_metadata_name():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_continuous_integration_runs_the_command_that_people_run():
    run = ROOT / ".ci/run"
    assert os.access(run, os.X_OK)
    (command,) = (
        line for line in run.read_text().splitlines() if line and not line.startswith("#")
    )  # not run: it runs us
    assert re.fullmatch(r'exec bash "\$\(dirname .*\)/\.\./scripts/test"', command)


@pytest.fixture
def bare_checkout(tmp_path) -> Path:
    """A copy of what set-up needs, under a path with a space, without an environment."""
    checkout = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, checkout)
    return checkout


def _run(command: Path, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MOE_ROBOT")} | variables
    return subprocess.run([command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_given_from_any_directory_through_a_link_without_setting_up(bare_checkout, tmp_path, name):
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(bare_checkout / "scripts" / name)
    done = _run(link, "--help", cwd=link.parent)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: scripts/{name}")
    assert {p.name for p in bare_checkout.iterdir()} == {"scripts", "pyproject.toml", *LOCKS}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_environment_of_somebody_else_is_left_alone(bare_checkout, name):
    foreign = bare_checkout / ".venv"
    foreign.mkdir()
    (foreign / "pyvenv.cfg").write_text("home = /usr\n")
    done = _run(bare_checkout / "scripts" / name, cwd=bare_checkout)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "did not make" in line
    assert "MOE_ROBOT_VENV" in line
    assert [p.name for p in foreign.iterdir()] == ["pyvenv.cfg"]


def test_a_python_that_is_too_old_or_absent_is_explained_in_one_line(bare_checkout, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "readlink", "sha256sum", "mkdir", "flock", "ls", "rm", "env"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = _run(bare_checkout / "scripts/demo", "--setup-only", cwd=tmp_path, PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "moe_robot: python3 is missing: install Python 3.11, 3.12 or 3.13, then run again"
    ]


def test_an_environment_counts_as_ready_only_for_the_lock_that_it_was_made_from(bare_checkout):
    script = """
        source scripts/environment.sh
        mkdir -p .venv/bin && touch .venv/bin/python && chmod +x .venv/bin/python
        environment_is_ready && echo ready || echo not ready
        echo unfinished > "$STAMP"; environment_is_ready && echo ready || echo not ready
        environment_key > "$STAMP"; environment_is_ready && echo ready || echo not ready
        echo "# changed" >> requirements.lock; environment_is_ready && echo ready || echo not ready
    """
    done = subprocess.run(["bash", "-c", script], cwd=bare_checkout, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["not ready", "not ready", "ready", "not ready"], done.stderr
