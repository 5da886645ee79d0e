"""The sizes, colours and fixed places of PitStop: what the scene, the tasks, the layout and the expert agree on.

World frame: x away from the robot's base, y to the robot's left, z up, origin at the base on the table top. Metres,
kilograms, radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RED, GREEN, BLUE = (0.85, 0.10, 0.08), (0.10, 0.62, 0.14), (0.08, 0.20, 0.85)
YELLOW, PURPLE, BROWN = (0.95, 0.80, 0.05), (0.52, 0.10, 0.62), (0.35, 0.22, 0.12)
TABLE, WHITE, DARK, STEEL = (0.70, 0.68, 0.64), (0.97, 0.97, 0.95), (0.13, 0.13, 0.14), (0.45, 0.47, 0.50)

MAX_OPENING = 0.08  # between the gripper's pads


@dataclass(frozen=True)
class ObjectSpec:
    """A movable thing. Lengths in metres.

    Attributes:
        width: across the fingers when it is grasped at its own yaw.
        height: full height when it lies on the table.
        grasp_height: height of the tool over the table when it is grasped there.
        symmetry: the yaw period after which it looks the same to the fingers; 0 for any yaw.
    """

    width: float
    height: float
    grasp_height: float
    symmetry: float


OBJECTS: dict[str, ObjectSpec] = {
    "red_cube": ObjectSpec(0.040, 0.040, 0.020, math.pi / 2),
    "blue_cube": ObjectSpec(0.040, 0.040, 0.020, math.pi / 2),
    "green_block": ObjectSpec(0.036, 0.036, 0.018, math.pi),
    "yellow_wheel": ObjectSpec(0.050, 0.026, 0.016, 0.0),
    "purple_nut": ObjectSpec(0.046, 0.024, 0.016, math.pi / 3),
}
BLOCK_LENGTH = 0.075
NUT_HOLE = 0.026  # across flats
SCENES = ("demo", "all")
SCENE_OBJECTS = {"demo": ("red_cube", "blue_cube"), "all": tuple(OBJECTS)}

PEG_XY = (0.665, 0.0)
PEG_RADIUS, PEG_HEIGHT = 0.008, 0.055
BIN_XY = {"left": (0.675, 0.175), "right": (0.675, -0.175)}  # left and right are the robot's
BIN_HALF, BIN_WALL_HEIGHT, BIN_WALL = 0.062, 0.045, 0.004
LINE_X = 0.575

BUTTONS = ("red", "green", "blue")
BUTTON_TRAVEL = 0.010
BUTTON_TOP = 0.030
BUTTON_RADIUS = 0.028
BUTTON_STIFFNESS = 150.0  # N/m
