"""``render_mode="human"``: MuJoCo's viewer, where there is a display or Xvfb."""

import os
import shutil
import subprocess
import sys

import pytest

from moe_envs.rendering import has_display

WATCH = """
import time, gymnasium, moe_envs
for cameras in ((), ("front",)):  # the second needs pictures after a window was closed, which has its own traps
    env = gymnasium.make("moe_robot/PitStop-v0", render_mode="human", cameras=cameras, control_hz=10)
    env.reset(seed=0)
    started = time.monotonic()
    for _ in range(4):
        env.step(env.action_space.sample())
    assert time.monotonic() - started > 0.3, "not in real time"
    env.close()
    env.close()
print("watched")
"""


def test_a_window_opens_keeps_time_and_closes_without_a_crash():
    xvfb = shutil.which("xvfb-run")
    if not (xvfb or has_display()):
        pytest.skip("needs a display or xvfb-run")
    display = [] if has_display() else [xvfb, "-a", "-s", "-screen 0 640x480x24 +extension GLX"]
    done = subprocess.run(
        [*display, sys.executable, "-c", WATCH], env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "watched" in done.stdout
