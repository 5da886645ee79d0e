"""Checks of the options that every world has."""

from __future__ import annotations

from collections.abc import Sequence

from moe_envs.rendering import QUALITIES, has_display
from moe_robot.registry import unknown
from moe_robot.types import UserError

RENDER_MODES = ("human", "rgb_array")


def one_of(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of ``choices``, naming the nearest."""
    if value not in choices:
        raise unknown(option, str(value), choices)


def cameras(chosen: str | Sequence[str], offered: tuple[str, ...]) -> tuple[str, ...]:
    """The cameras to observe, one by its bare name or several; refuses one that is not ``offered``."""
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    for name in names:
        one_of("camera", name, offered)
    return names


def check_drawing(quality: str, mode: str | None) -> None:
    """Refuse a render quality or render mode that is not offered, or cannot be had on this machine."""
    one_of("render", quality, QUALITIES)
    if mode is not None:
        one_of("render_mode", mode, RENDER_MODES)
    if mode == "human" and not has_display():
        raise UserError("render_mode='human' needs a display, and there is none: use render_mode='rgb_array'")


def image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of camera pictures from pixels of a square one, or from both."""
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if not (8 <= height <= 2048 and 8 <= width <= 2048):
        raise UserError(f"image_size={size!r} is not offered: expected 8 to 2048 pixels, or (height, width)")
    return height, width


def largest(*sizes: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that a picture of each of ``sizes`` fits in."""
    heights, widths = zip(*sizes, strict=True)
    return max(heights), max(widths)
