"""openpi's public client, unchanged and in an environment of its own (it needs numpy 1), works with this server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
LOCK = HERE / "requirements-openpi.lock"
ROOT = HERE.parents[2]


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"openpi-client cannot be had or fails: {done.stderr[-2000:]}", False)
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Of that environment. What cannot be had fails the test."""
    uv, folder = shutil.which("uv") or str(ROOT / ".venv-bootstrap/bin/uv"), tmp_path_factory.mktemp("openpi") / "venv"
    interpreter = sys.executable if sys.version_info < (3, 13) else "3.12"  # numpy 1 has no wheels beyond
    _run(uv, "venv", "--quiet", "--python", interpreter, folder)
    install = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", folder / "bin/python", LOCK]
    if subprocess.run([*install, "--offline"], capture_output=True).returncode:  # not in uv's cache
        _run(*install)
    return folder / "bin/python"


def test_the_public_client_gets_plans_single_actions_and_errors(python, server, mirror):
    told = json.loads(_run(python, HERE / "openpi_side.py", server.address))
    assert told["numpy"].startswith("1.")
    assert told["fps"] == 20
    plan = mirror.expected([1, 2, 3], told["light"], "go on")
    np.testing.assert_allclose(told["actions"], plan, rtol=1e-5)
    np.testing.assert_allclose(told["steps"], plan[[0, 1, 2, 0]], rtol=1e-5)
    assert told["dtype"] == "<f4"
    assert {"infer_ms"} <= set(told["timing"])
    assert "lacks 'observation.state'" in told["said"]
    assert "Traceback" not in told["said"]
