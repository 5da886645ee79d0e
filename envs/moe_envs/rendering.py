"""Draws camera pictures of a MuJoCo model with one off-screen GL context and, on request, very cheap settings.

``fast`` drops shadows, reflections and multisampling and draws convex hulls: 50 to 100 times faster on a CPU than
MuJoCo's defaults (``moe-robot bench render``). ``full`` keeps them, for pictures that people look at.
"""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from moe_robot.types import UserError

QUALITIES = ("fast", "full")
GL_INSTALL_LINE = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"


def has_display() -> bool:
    """Whether windows can be opened here."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def gl_backend() -> str:
    """What pictures are drawn with: ``$MUJOCO_GL``, else ``egl`` on a machine without a display, else ``glfw``.

    The variable is only read, never set: with ``MUJOCO_GL=egl`` even importing mujoco fails where the EGL library is
    missing, and physics without pictures needs none.
    """
    return os.environ.get("MUJOCO_GL", "").lower().strip() or ("glfw" if has_display() else "egl")


def prepare_gl_backend() -> None:
    """Keep software GL (llvmpipe) from starting a thread per core for every context. Must run before the first one.

    With one environment per core those threads only cost time. A user's own setting stays.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")


def load_triton_first() -> None:
    """Load triton, where torch brought it, before the first GL context.

    Mesa's software renderer and triton each bring an LLVM, Mesa's with global symbols: a triton that is loaded after
    the first picture (torch does so late, from many places) finds the wrong ones and ends the process.
    """
    with suppress(ImportError):
        importlib.import_module("triton")


def no_gl(error: Exception) -> UserError:
    """The error for a machine that cannot draw, with the line that mends it."""
    backend = gl_backend()
    hint = "" if backend == "egl" else " (egl needs no display: set MUJOCO_GL=egl)"
    return UserError(
        f"cannot draw pictures off-screen ({type(error).__name__}: {error}): expected OpenGL through "
        f"MUJOCO_GL={backend}{hint}; run: {GL_INSTALL_LINE}"
    )


def tune_for_speed(model: Any) -> None:
    """Switch off what costs most in software rendering. Must run before the renderer is created."""
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.vis.quality.numslices, model.vis.quality.numstacks = 16, 4  # cylinders and spheres: fewer triangles


class CameraRenderer:
    """Named cameras of one model as uint8 pictures, through one GL context that belongs to the creating thread.

    The context is made here, so create this where it is used: in the worker process, at the first picture.
    """

    def __init__(self, model: Any, quality: str, max_size: tuple[int, int], hidden_groups: Sequence[int] = ()) -> None:
        """Create the GL context.

        Args:
            model: the MuJoCo model; for ``fast`` it must have been through :func:`tune_for_speed`.
            quality: ``"fast"`` or ``"full"``.
            max_size: (height, width) of the largest picture that will be asked for.
            hidden_groups: geom groups that are not drawn.

        Raises:
            UserError: this machine cannot draw off-screen.
        """
        import mujoco

        self._mujoco = mujoco
        load_triton_first()
        model.vis.global_.offheight, model.vis.global_.offwidth = max_size
        try:
            self._gl = _context_class()(max_size[1], max_size[0])
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # each backend has its own error types, down to AttributeError for a missing library
            raise no_gl(error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        # Runs at close, at garbage collection or at exit, whichever comes first. At exit it has to come before mujoco's
        # own atexit function ends GL: registered later, it runs earlier.
        self._free = weakref.finalize(self, _free, self._gl, self._context)
        self._free.atexit = False
        atexit.register(self._free)
        self._scene = mujoco.MjvScene(model, maxgeom=200 + 2 * model.ngeom)
        self._option = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._model = model
        self.quality = quality
        for group in hidden_groups:
            self._option.geomgroup[group] = 0
        if quality == "fast":
            self._option.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = 1
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0

    def draw(self, data: Any, cameras: Sequence[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Camera -> uint8 RGB picture (height, width, 3), first row at the top, of the poses in ``data``.

        The headlight of all of them is at the last camera: MuJoCo puts it where the scene is seen from at an update.
        Were that where the picture before was taken from, a picture would depend on that one.
        """
        if not cameras:
            return {}
        mujoco, pictures = self._mujoco, {}
        self._gl.make_current()
        self._look_through(cameras[-1])
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._option, self._perturb, self._camera, everything, self._scene)
        rectangle = mujoco.MjrRect(0, 0, size[1], size[0])
        for camera in cameras:
            self._look_through(camera)
            mujoco.mjv_updateCamera(self._model, data, self._camera, self._scene)
            upside_down = np.empty((*size, 3), dtype=np.uint8)
            mujoco.mjr_render(rectangle, self._scene, self._context)
            mujoco.mjr_readPixels(upside_down, None, rectangle, self._context)
            pictures[camera] = np.ascontiguousarray(upside_down[::-1])
        return pictures

    def _look_through(self, camera: str) -> None:
        kind = self._mujoco.mjtObj.mjOBJ_CAMERA
        self._camera.fixedcamid = self._mujoco.mj_name2id(self._model, kind, camera)

    def describe(self) -> str:
        """The quality, backend and GL driver, for reports: two drivers do not draw the same bits."""
        self._gl.make_current()
        try:
            from OpenGL import GL  # comes with mujoco

            driver = b" / ".join(filter(None, (GL.glGetString(GL.GL_VENDOR), GL.glGetString(GL.GL_RENDERER)))).decode()
        except Exception as error:  # the driver's name is a nicety; PyOpenGL fails in many ways on odd platforms
            driver = f"driver unknown ({type(error).__name__})"
        return f"{self.quality}, {gl_backend()}, {driver}"

    def close(self) -> None:
        """Free the GL context. Safe to call again."""
        self._free()
        atexit.unregister(self._free)


def _context_class() -> Any:
    """The GL context class of :func:`gl_backend`, whatever mujoco itself chose when it was imported."""
    if gl_backend() == "egl":
        from mujoco.egl import GLContext
    elif gl_backend() == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco import GLContext
    return GLContext


def _free(gl: Any, context: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()
