"""Draws where everything lies at the start of an episode, without knowing the task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_envs.pitstop.dimensions import BUTTONS, LINE_X, SCENE_OBJECTS

SPACING = {"demo": 0.115, "all": 0.105}  # closer, and the open fingers hit the neighbour
AREA = {"demo": ((0.36, 0.62), (-0.22, 0.22)), "all": ((0.33, 0.55), (-0.27, 0.27))}
BLOCK_X = (0.38, 0.43)  # near enough to be pushed, far enough for the hand to get behind it
CORRIDOR = {"object": 0.065, "button": 0.085}  # kept free at either side of the block's way to the line
BEHIND_BLOCK = 0.11
MAX_YAW = 0.4
START = np.array([0.47, 0.0, 0.22])
START_SPREAD = np.array([0.08, 0.12, 0.05])
START_YAW = 0.3


@dataclass(frozen=True)
class Layout:
    """Where things are at the start. Metres and radians in the world frame.

    Attributes:
        objects: name -> (x, y, yaw).
        buttons: colour -> (x, y).
        tool: (3,) the point between the finger pads.
        yaw: of the hand.
    """

    objects: dict[str, tuple[float, float, float]]
    buttons: dict[str, tuple[float, float]]
    tool: np.ndarray
    yaw: float


def draw_layout(scene: str, rng: np.random.Generator) -> Layout:
    """A random layout of ``"demo"`` or ``"all"``: everything in reach, at least ``SPACING`` apart, by rejection."""
    names = sorted(SCENE_OBJECTS[scene], key=lambda name: name != "green_block")  # the block first: it claims its way
    places: dict[str, tuple[float, float]] | None = None
    while places is None:
        places = _try_places(scene, [*names, *BUTTONS], rng)
    yaws = rng.uniform(-MAX_YAW, MAX_YAW, len(names))
    objects = {
        name: (*places[name], float(yaw) * (0.25 if name == "green_block" else 1.0))  # pushed along its length
        for name, yaw in zip(names, yaws, strict=True)
    }
    return Layout(
        objects={name: objects[name] for name in SCENE_OBJECTS[scene]},
        buttons={name: places[name] for name in BUTTONS},
        tool=START + START_SPREAD * rng.uniform(-1, 1, 3),
        yaw=float(rng.uniform(-START_YAW, START_YAW)),
    )


def _try_places(scene: str, names: list[str], rng: np.random.Generator) -> dict[str, tuple[float, float]] | None:
    """Places one thing after another; None when one finds no room (then all is drawn again)."""
    (x_low, x_high), (y_low, y_high) = AREA[scene]
    placed: dict[str, tuple[float, float]] = {}
    for name in names:
        low, high = BLOCK_X if name == "green_block" else (x_low, x_high)
        for x, y in rng.uniform((low, y_low), (high, y_high), (40, 2)).tolist():
            if all(math.hypot(x - a, y - b) >= SPACING[scene] for a, b in placed.values()) and _off_the_way(
                name, x, y, placed.get("green_block")
            ):
                placed[name] = (x, y)
                break
        else:
            return None
    return placed


def _off_the_way(name: str, x: float, y: float, block: tuple[float, float] | None) -> bool:
    if block is None or not block[0] - BEHIND_BLOCK < x < LINE_X + 0.06:
        return True
    return abs(y - block[1]) >= CORRIDOR["button" if name in BUTTONS else "object"]
