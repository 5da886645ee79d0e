"""Real ROS 2 for tests: an environment of its own from requirements-ros.lock, on top of the one that runs the tests."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "requirements-ros.lock"


def ros_python(folder: Path) -> Path:
    """The Python of the environment in ``folder``, made if it is not there yet; one process makes it, others wait.

    What cannot be had fails the test that asks.
    """
    python = folder / "bin/python"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _fill(folder, python)
            (folder / "ready").touch()
    return python


def _fill(folder: Path, python: Path) -> None:
    uv = shutil.which("uv") or str(ROOT / ".venv-bootstrap/bin/uv")
    _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder)
    install = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, LOCK]
    if subprocess.run([*install, "--offline"], capture_output=True).returncode != 0:  # not in uv's cache
        _run(*install)
    packages = Path(sysconfig.get_path("purelib"))
    beneath = f"import site; site.addsitedir({str(packages)!r})\n"  # so that its own .pth files count too
    (folder / "lib" / packages.parent.name / "site-packages" / "zz_beneath.pth").write_text(beneath)


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"ROS 2 cannot be had: {command[0]} {command[1]} {command[2]} said {done.stderr[-2000:]}", False)


def run_tests(python: Path, *arguments: object) -> None:
    """Run tests of ``tests/deploy/native`` in that environment; one that fails there fails here, with what was said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "ROS_", "RMW_"))}
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(done.stdout[-12_000:] + done.stderr[-3_000:], False)
    assert " passed" in done.stdout, done.stdout
    assert "skipped" not in done.stdout, done.stdout
