"""The real robomimic in an environment of its own (it pins old packages): made when a full test first needs it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VERSION = "0.3.0"
PLACE = Path(os.environ.get("MOE_ROBOT_ROBOMIMIC_VENV", ROOT / ".venv-robomimic"))
"""Small: torch is borrowed from the tests' own environment."""
NEEDS = [f"robomimic=={VERSION}", "h5py", "numpy", "psutil", "tqdm", "termcolor", "tensorboardX", "imageio", "six"]
SCRIPT = ROOT / "tests/data/foreign/robomimic_side.py"


def run_robomimic(jobs: list[dict[str, str]]) -> None:
    """Let robomimic read (see ``robomimic_side.py``). The test fails when it cannot be had: it is never skipped."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [_python(), SCRIPT, json.dumps(jobs)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.fail(f"robomimic could not do it: {done.stderr[-3000:]}", pytrace=False)


def _python() -> Path:
    python = PLACE / "bin/python"
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    with PLACE.with_name(PLACE.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may come at once
        if not list(PLACE.glob(f"lib/python3*/site-packages/robomimic-{VERSION}.dist-info")):
            uv = shutil.which("uv") or str(ROOT / ".venv-bootstrap/bin/uv")
            for command in (
                [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(PLACE)],
                [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), *NEEDS],
            ):
                try:
                    subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
                except (OSError, subprocess.SubprocessError) as error:
                    said = getattr(error, "stderr", None) or str(error)
                    pytest.fail(f"robomimic {VERSION} cannot be had: {' '.join(command)}: {said}", pytrace=False)
        (packages,) = PLACE.glob("lib/python3*/site-packages")
        (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
