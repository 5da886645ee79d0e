"""The real lerobot in an environment of its own (it pins another torch): made when a full test first needs it."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VERSION = "0.4.4"
PLACE = Path(os.environ.get("MOE_ROBOT_LEROBOT_VENV", ROOT / ".venv-lerobot"))
"""About 8 GB. Kept between runs; MOE_ROBOT_LEROBOT_VENV names another place, or one that has lerobot already."""
SCRIPT = ROOT / "tests/data/foreign/lerobot_side.py"


def lerobot_python() -> Path:
    """The interpreter that has lerobot. The test fails when it cannot be had: these tests are never skipped."""
    python = PLACE / "bin/python"
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    with PLACE.with_name(PLACE.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may come at once
        if _version(python) != VERSION:
            uv = shutil.which("uv") or str(ROOT / ".venv-bootstrap/bin/uv")
            for command in (
                [uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", str(PLACE)],
                [uv, "pip", "install", "--quiet", "--python", str(python), f"lerobot=={VERSION}"],
            ):
                try:
                    subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
                except (OSError, subprocess.SubprocessError) as error:
                    said = getattr(error, "stderr", None) or str(error)
                    pytest.fail(f"lerobot {VERSION} cannot be had: {' '.join(command)}: {said}", pytrace=False)
    return python


def run_lerobot(jobs: list[dict[str, str]]) -> None:
    """Let lerobot write and read (see ``lerobot_side.py``)."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [lerobot_python(), SCRIPT, json.dumps(jobs)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.fail(f"lerobot could not do it: {done.stderr[-3000:]}", pytrace=False)


def _version(python: Path) -> str | None:
    code = "from importlib.metadata import version; print(version('lerobot'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
