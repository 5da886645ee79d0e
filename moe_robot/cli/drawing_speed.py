"""Measures how fast this machine draws camera pictures, in a process of its own: a broken GL driver may kill it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from moe_robot.types import UserError

SCENE = """
<mujoco>
  <asset><texture name="t" type="2d" builtin="checker" width="64" height="64"/><material name="m" texture="t"/></asset>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="1.2 0 1" xyaxes="0 1 0 -.6 0 .8"/>
    <geom type="plane" size="2 2 .1" material="m"/>
    <replicate count="20" offset=".07 0 0" euler="0 0 18"><geom type="capsule" size=".03 .2" pos=".3 0 .2"/></replicate>
  </worldbody>
</mujoco>
"""


@dataclass(frozen=True)
class Drawing:
    """What came of drawing a small scene with the worlds' own renderer.

    Attributes:
        renderer: quality, backend and driver.
        pixels: side of the square picture.
        frames_per_cpu_second: pictures per second of processor time, reading back included.
        error: why nothing could be drawn, or an empty string.
        remedy: what to do about it, or an empty string.
    """

    renderer: str
    pixels: int
    frames_per_cpu_second: float
    error: str = ""
    remedy: str = ""


def measure(pixels: int = 96, seconds: float = 0.5) -> Drawing:
    """Draw the small scene for ``seconds`` of processor time.

    Raises:
        UserError: this machine cannot draw off-screen.
    """
    from moe_envs.rendering import CameraRenderer, prepare_gl_backend, tune_for_speed

    prepare_gl_backend()  # before mujoco is imported
    mujoco: Any = importlib.import_module("mujoco")
    model = mujoco.MjModel.from_xml_string(SCENE)
    tune_for_speed(model)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = CameraRenderer(model, "fast", (pixels, pixels))
    try:
        picture = renderer.draw(data, ("front",), (pixels, pixels))["front"]
        if picture.min() == picture.max():
            raise UserError("the GL driver draws nothing (every pixel is the same): try MUJOCO_GL=osmesa")
        frames, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            renderer.draw(data, ("front",), (pixels, pixels))
            frames += 1
        return Drawing(renderer.describe(), pixels, frames / spent)
    finally:
        renderer.close()


def measure_in_a_process(timeout: float = 120) -> Drawing:
    """:func:`measure` in a fresh process. What fails there comes back as ``error`` and ``remedy``."""
    command = [sys.executable, "-m", "moe_robot.cli.drawing_speed"]
    backend = os.environ.get("MUJOCO_GL", "the default")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Drawing("", 0, 0, f"nothing was drawn within {timeout:.0f} s", "set MUJOCO_GL=egl or osmesa")
    if done.returncode == 0:
        return Drawing(**json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return Drawing(
            "", 0, 0, f"the GL driver crashed (signal {-done.returncode}, MUJOCO_GL is {backend})", _install()
        )
    said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
    error, _, remedy = said.partition("; run: ")
    return Drawing("", 0, 0, error, remedy or _install())


def _install() -> str:
    from moe_envs.rendering import GL_INSTALL_LINE

    return GL_INSTALL_LINE


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(measure())))
    except UserError as fault:
        sys.exit(str(fault))
