"""Adds the things of PitStop to a world under construction: buttons, objects, the peg, the bins and the line.

Contact bits: 1 is the hand and every solid thing, 2 is the table. An affinity of 3 touches both, of 1 not the table.
"""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

import math
from typing import Any

import mujoco

from moe_envs.pitstop import dimensions as dim
from moe_envs.pitstop.panda import STIFF

BOX, CYLINDER, CAPSULE = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE
PAINT = {"contype": 0, "conaffinity": 0}
SOLID = {"contype": 1, "conaffinity": 1}
SOLID_ON_TABLE = {"contype": 1, "conaffinity": 3}
BUTTON_COLOURS = {"red": dim.RED, "green": dim.GREEN, "blue": dim.BLUE}
CAP_HALF = 0.009


def add_button(world: Any, name: str) -> None:
    """A round cap on a square plate; the cap's slide joint ``<name>_button`` gives how far it is pressed."""
    base = world.add_body(name=f"{name}_button")
    base.add_geom(type=BOX, size=[0.040, 0.040, 0.007], pos=[0, 0, 0.007], rgba=[*dim.DARK, 1], **SOLID)
    cap = base.add_body(name=f"{name}_button_cap", pos=[0, 0, dim.BUTTON_TOP - CAP_HALF], gravcomp=1.0)
    cap.add_joint(
        name=f"{name}_button",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[0, 0, -1],
        range=[0, dim.BUTTON_TRAVEL],
        limited=True,
        stiffness=dim.BUTTON_STIFFNESS,
        damping=2.0,
        springref=-0.004,
    )
    colour = [*BUTTON_COLOURS[name], 1]
    cap.add_geom(type=CYLINDER, size=[dim.BUTTON_RADIUS, CAP_HALF, 0], rgba=colour, mass=0.02, **SOLID)


def add_object(world: Any, name: str) -> None:
    """A movable thing of :data:`dimensions.OBJECTS` with a free joint of its own name."""
    shape = dim.OBJECTS[name]
    body = world.add_body(name=name)
    body.add_freejoint(name=name)
    # Among themselves; where a pad (priority 2) or the table (3) touches them, its parameters hold.
    slide = {"priority": 1, "friction": [0.5, 0.01, 0.0001], **STIFF}
    half, z = shape.width / 2, shape.height / 2
    if name == "yellow_wheel":
        body.add_geom(type=CYLINDER, size=[half, z, 0], mass=0.05, rgba=[*dim.YELLOW, 1], **slide, **SOLID)
        body.add_geom(type=CYLINDER, size=[0.45 * half, z + 0.001, 0], mass=0, rgba=[*dim.DARK, 1], **PAINT)
        _add_foot(body, half, z, slide)
    elif name == "purple_nut":
        _add_nut(body, half, z, slide)
    else:
        colour = {"red_cube": dim.RED, "blue_cube": dim.BLUE, "green_block": dim.GREEN}[name]
        length, mass = (dim.BLOCK_LENGTH, 0.06) if name == "green_block" else (shape.width, 0.05)
        body.add_geom(type=BOX, size=[length / 2, half, z], mass=mass, rgba=[*colour, 1], **slide, **SOLID_ON_TABLE)


def _add_nut(body: Any, half: float, z: float, slide: dict[str, Any]) -> None:
    thickness = (2 * half - dim.NUT_HOLE) / 4
    radius = half - thickness
    for side in range(6):
        angle = side * math.pi / 3 + math.pi / 2
        body.add_geom(
            type=BOX,
            size=[thickness, half * math.tan(math.pi / 6), z],
            pos=[radius * math.cos(angle), radius * math.sin(angle), 0],
            quat=[math.cos(angle / 2), 0, 0, math.sin(angle / 2)],
            mass=0.05 / 6,
            rgba=[*dim.PURPLE, 1],
            **slide,
            **SOLID,
        )
    _add_foot(body, half, z, slide)


def _add_foot(body: Any, half: float, z: float, slide: dict[str, Any]) -> None:
    """An unseen block inside that stands on the table, and touches nothing else, in place of the shape around it.

    The nut's six boxes would make 24 contacts. The wheel's cylinder, when it lies flat, now and then loses all its
    contacts with a plane for some steps (mujoco 3.3.0), sinks in and is shot upward.
    """
    size = [0.7 * half, 0.7 * half, z]
    body.add_geom(type=BOX, size=size, mass=0, rgba=[0] * 4, contype=0, conaffinity=2, **slide)


def add_fixtures(world: Any) -> None:
    """The peg, the two bins and the line, at fixed places."""
    x, y = dim.PEG_XY
    world.add_geom(type=CYLINDER, size=[0.035, 0.0015, 0], pos=[x, y, 0.0015], rgba=[*dim.DARK, 1], **PAINT)
    peg = [x, y, dim.PEG_HEIGHT / 2 - dim.PEG_RADIUS]
    size = [dim.PEG_RADIUS, dim.PEG_HEIGHT / 2, 0]
    world.add_geom(name="peg", type=CAPSULE, size=size, pos=peg, rgba=[*dim.STEEL, 1], **SOLID)
    half, wall, z = dim.BIN_HALF, dim.BIN_WALL, dim.BIN_WALL_HEIGHT / 2
    wood = [*(1.25 * channel for channel in dim.BROWN), 1]
    for x, y in dim.BIN_XY.values():
        world.add_geom(type=BOX, size=[half, half, 0.001], pos=[x, y, 0.001], rgba=[*dim.BROWN, 1], **PAINT)
        for side in (-half, half):
            world.add_geom(type=BOX, size=[wall, half, z], pos=[x + side, y, z], rgba=wood, **SOLID)
            world.add_geom(type=BOX, size=[half, wall, z], pos=[x, y + side, z], rgba=wood, **SOLID)
    line = [dim.LINE_X, 0, 0.0005]
    world.add_geom(name="line", type=BOX, size=[0.005, 0.27, 0.0005], pos=line, rgba=[*dim.WHITE, 1], **PAINT)
