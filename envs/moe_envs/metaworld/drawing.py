"""Pictures of a Meta-World scene, drawn from a model of its own that has no part in the physics.

Meta-World's arm is made of 67,000 triangles, which a software renderer draws nine times a second. For learning the arm
is drawn as convex hulls of few corners and the things as they are: a hull would close boxes, rings and drawers.
"""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

import mujoco
import numpy as np

from moe_envs.labels import in_picture
from moe_envs.rendering import CameraRenderer, tune_for_speed

CAMERAS = ("corner2", "close", "corner", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
"""Meta-World's, and ``close``: where ``corner2`` stands, with a narrower view of the table top."""
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
CORNER2_POSITION = (0.75, 0.075, 0.7)
"""Where papers that report on pictures put ``corner2`` (m, Meta-World's frame); as shipped, a puck is two pixels."""
CLOSE_FIELD_OF_VIEW = 46.0
CLOSE_TURN = (5.0, 1.5)
"""Degrees: ``close`` sees 46 of the 60 that ``corner2`` sees, turned right and down so that no task is cut off."""

ARM_MESHES = ("base", "pedestal", "head", "l0", "l1", "l2", "l3", "l4", "l5", "l6", "eGripperBase")
HULL_CORNERS = 64
POSES = ("xpos", "xmat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "light_xpos", "light_xdir")


class Drawing:
    """Draws one Meta-World model file through a renderer of its own.

    Args:
        file: the MJCF file of the scene.
        quality: ``"fast"`` or ``"full"`` (:mod:`moe_envs.rendering`).
        max_size: (height, width) of the largest picture that will be asked for.
    """

    def __init__(self, file: str, quality: str, max_size: tuple[int, int]) -> None:
        self.model = drawn_model(file, quality)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)  # cameras that are fixed in the world find their place here
        self._moving = [self.model.camera(i).name for i in np.flatnonzero(self.model.cam_bodyid)]
        self._renderer = CameraRenderer(self.model, quality, max_size)

    def draw(self, scene: mujoco.MjData, cameras: tuple[str, ...], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Camera -> uint8 RGB (height, width, 3) of the poses in ``scene``, upright."""
        for name in POSES:
            getattr(self.data, name)[:] = getattr(scene, name)
        self._move_cameras(scene)
        return self._renderer.draw(self.data, cameras, size)

    def in_picture(self, places: np.ndarray, scene: mujoco.MjData, camera: str, size: tuple[int, int]) -> np.ndarray:
        """Where points of the world appear in a camera's picture: see :func:`moe_envs.labels.in_picture`."""
        self._move_cameras(scene)
        return in_picture(places, self.model, self.data, camera, size)

    def _move_cameras(self, scene: mujoco.MjData) -> None:
        for camera in self._moving:
            mine, theirs = self.data.camera(camera), scene.camera(camera)
            mine.xpos[:], mine.xmat[:] = theirs.xpos, theirs.xmat

    def describe(self) -> str:
        """The quality, backend and GL driver, for reports."""
        return self._renderer.describe()

    def close(self) -> None:
        """Free the GL context. Safe to call again."""
        self._renderer.close()


def drawn_model(file: str, quality: str) -> mujoco.MjModel:
    """The scene with our cameras, and for ``fast`` with an arm of hulls. Bodies, geoms and sites keep their numbers."""
    spec = mujoco.MjSpec.from_file(file)
    spec.worldbody.add_camera(name="close", fovy=CLOSE_FIELD_OF_VIEW)
    if quality == "fast":
        for mesh in spec.meshes:
            mesh.maxhullvert = HULL_CORNERS if mesh.name in ARM_MESHES else mesh.maxhullvert
        for body in spec.bodies:
            for geom in body.geoms:  # MuJoCo has a hull of what can collide, and draws it wherever there is one
                if geom.type == mujoco.mjtGeom.mjGEOM_MESH:
                    geom.contype = geom.conaffinity = int(geom.meshname in ARM_MESHES)
    model = spec.compile()
    for name in UPSIDE_DOWN:
        quat = model.camera(name).quat
        mujoco.mju_mulQuat(quat, quat.copy(), np.array([0.0, 0.0, 0.0, 1.0]))  # half a turn about the line of sight
    model.camera("corner2").pos = CORNER2_POSITION
    model.camera("close").pos, model.camera("close").quat = CORNER2_POSITION, _turned(model.camera("corner2").quat)
    if quality == "fast":
        tune_for_speed(model)
    return model


def _turned(quat: np.ndarray) -> np.ndarray:
    """A camera's orientation (w, x, y, z), turned by ``CLOSE_TURN`` to its right and down."""
    right, down = np.radians(CLOSE_TURN)
    for axis, angle in (((0.0, 1.0, 0.0), -right), ((1.0, 0.0, 0.0), -down)):
        turn, turned = np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, np.array(axis), angle)
        mujoco.mju_mulQuat(turned, quat, turn)
        quat = turned
    return quat
