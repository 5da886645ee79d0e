"""Where things are, as labels for training: in the world, and in each camera's picture. Never observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OUTSIDE = 2.0
"""Where a thing is said to be that a camera cannot see, beyond the picture's edge at 1."""


def label_names(things: Sequence[str], cameras: Sequence[str]) -> tuple[str, ...]:
    """Names of the numbers of :func:`labels`.

    ``thing.x``, ``.y``, ``.z``, metres in the world frame, of every thing; then, camera by camera, ``thing.camera.u``
    and ``.v``, from -1 at the picture's left and upper edge to 1 at its right and lower one.
    """
    world = [f"{thing}.{axis}" for thing in things for axis in "xyz"]
    return (*world, *(f"{thing}.{camera}.{axis}" for camera in cameras for thing in things for axis in "uv"))


def labels(places_T3: np.ndarray, pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Float32, in the order of :func:`label_names`, of places (T, 3) and, by camera, places in its picture (T, 2)."""
    return np.concatenate([places_T3.reshape(-1), *(uv_T2.reshape(-1) for uv_T2 in pictures.values())]).astype(
        np.float32
    )


def in_picture(places_T3: np.ndarray, model: Any, data: Any, camera: str, size: tuple[int, int]) -> np.ndarray:
    """Where points of the world appear in a picture of ``size`` (height, width): (T, 3) -> (T, 2).

    What hides a point is not asked; one outside the picture has at least one entry of at most ``OUTSIDE`` beyond 1.
    """
    seen = data.camera(camera)
    right, up, back = ((places_T3 - seen.xpos) @ seen.xmat.reshape(3, 3)).T
    height, width = size
    reach = np.maximum(-back, 1e-9) * np.tan(np.radians(float(model.camera(camera).fovy[0])) / 2)  # to the upper edge
    uv_T2 = np.stack([right / (reach * width / height), -up / reach], axis=1)
    uv_T2[back >= 0] = OUTSIDE
    return np.clip(uv_T2, -OUTSIDE, OUTSIDE)
