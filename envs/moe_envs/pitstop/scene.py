"""Builds the PitStop model: the Panda at a table with everything on it, the lights and the front camera."""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from moe_envs.pitstop import dimensions as dim
from moe_envs.pitstop.panda import STIFF, check_joint_ranges, panda_spec
from moe_envs.pitstop.things import add_button, add_fixtures, add_object
from moe_envs.rendering import tune_for_speed

TIMESTEP = 0.002  # at 4 ms the wheel slips out of the fingers
FRONT_VIEWS = {
    "demo": ((0.93, 0.0, 0.78), (0.488, 0.0, 0.06), 37.0),
    "all": ((0.985, 0.0, 0.90), (0.503, 0.0, 0.05), 38.0),
}
"""Scene -> (eye, point looked at, vertical field of view in degrees) of the ``front`` camera, which looks at the robot:
the robot's left is at the right of the picture."""


def build_model(scene: str, quality: str) -> Any:
    """Compile the world as an ``mujoco.MjModel``.

    Args:
        scene: ``"demo"`` (two cubes, three buttons) or ``"all"``.
        quality: ``"fast"`` or ``"full"`` looks; the physics is the same.
    """
    spec = panda_spec(quality)
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    spec.option.iterations = 20
    spec.option.jacobian = mujoco.mjtJacobian.mjJAC_SPARSE  # things seldom touch: a tenth faster with all of them
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[1.2, 1.2, 0.1],
        rgba=[*dim.TABLE, 1],
        contype=2,
        conaffinity=0,
        priority=3,  # slippery for everything, pads too: at the pads' friction of 1 a pushing finger would jam
        friction=[0.4, 0.005, 0.0001],
        **STIFF,
    )
    _add_light(spec)
    eye, aim, fovy = FRONT_VIEWS[scene]
    world.add_camera(name="front", pos=list(eye), xyaxes=list(_look_at(eye, aim)), fovy=fovy)
    for name in dim.BUTTONS:
        add_button(world, name)
    for name in dim.SCENE_OBJECTS[scene]:
        add_object(world, name)
    if scene == "all":
        add_fixtures(world)
    model = spec.compile()
    check_joint_ranges(model)
    if quality == "fast":
        tune_for_speed(model)
    return model


def _add_light(spec: Any) -> None:
    dark = [0, 0, 0]
    spec.worldbody.add_light(
        pos=[0.9, 0.6, 1.6], dir=[-0.35, -0.45, -1], diffuse=[0.5] * 3, specular=[0.1] * 3, directional=True
    )
    spec.worldbody.add_light(
        pos=[1.2, -0.6, 0.8], dir=[-1, 0.5, -0.5], diffuse=[0.3] * 3, specular=dark, directional=True, castshadow=False
    )
    # Only the ambient part of the headlight: MuJoCo aims the rest from the camera of the picture before.
    spec.visual.headlight.ambient = [0.42, 0.42, 0.42]
    spec.visual.headlight.diffuse = spec.visual.headlight.specular = dark
    spec.visual.map.znear, spec.visual.map.zfar = 0.01, 20
    spec.stat.extent, spec.stat.center = 1.0, [0.5, 0, 0.2]  # fixed: the near plane must not depend on the scene


def _look_at(eye: tuple[float, ...], aim: tuple[float, ...]) -> np.ndarray:
    """x and y axes (6,) of a camera at ``eye`` that looks at ``aim`` with z upward in the picture."""
    back = np.subtract(eye, aim)
    right = np.cross([0, 0, 1], back)
    up = np.cross(back, right)
    return np.concatenate([right / np.linalg.norm(right), up / np.linalg.norm(up)])
