"""The real torchrun: a killed process is told in one line, and the run goes on from its last state."""

import json
import os
import signal
import subprocess
import sys
import time

from moe_robot.training.checkpoint import newest_state

SMALL = ("width=16", "hidden=8", "heads=2", "layers=2", "stem_channels=4", "patches=2", "glimpses=0", "chunk=2",
         "execute=1", "experts={vision: 2, arm: 1, language: 1}")  # fmt: skip


def _workers(parent: int) -> list[int]:
    children = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in children.splitlines() if "moe_robot train" in line]


def test_a_killed_process_is_told_once_and_torchrun_goes_on(demonstrations, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1", "-m", "moe_robot", "train", "--data", str(demonstrations), "--out", str(out),
        "--steps", "12", "--batch-size", "8", "--save-every", "0", "--expert-parallel", "2", "--config", *SMALL,
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command, stderr=log, stdout=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while newest_state(out) is None or newest_state(out).name < "step-00000004":
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        os.kill(_workers(run.pid)[-1], signal.SIGKILL)
        assert run.wait(600) == 0
    finally:
        run.kill()
    said = (tmp_path / "log").read_text()
    assert said.count("moe-robot train: another of the 2 processes has ended") == 1
    assert json.loads((out / "checkpoint" / "train.json").read_text())["steps"] == 12
