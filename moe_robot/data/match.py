"""Says what of one data set or policy is found in another, name by name, and orders vectors by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_robot.types import Features, UserError


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        kind: "camera", "state", "action" or "rate".
        wanted: the name that is needed, with its size; empty for something that nobody asked for.
        found: what is there; empty where nothing is.
        fits: whether that will do.
    """

    kind: str
    wanted: str
    found: str
    fits: bool


class FeaturesDiffer(UserError):
    """Two sets of features do not fit; ``rows`` is the whole table of what matched."""

    def __init__(self, message: str, rows: Sequence[Row]) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


def match(wanted: Features, found: Features) -> tuple[Row, ...]:
    """Every camera, state and action entry of both. State and action may come in another order."""
    rows = [_camera(name, size, found) for name, size in wanted.cameras.items()]
    rows += [Row("camera", "", _sized(c, s), False) for c, s in found.cameras.items() if c not in wanted.cameras]
    for kind, needed, there in (
        ("state", wanted.state_names, found.state_names),
        ("action", wanted.action_names, found.action_names),
    ):
        rows += [Row(kind, name, name if name in there else "", name in there) for name in needed]
        rows += [Row(kind, "", name, False) for name in there if name not in needed]
    return (*rows, Row("rate", f"{wanted.fps} Hz", f"{found.fps} Hz", wanted.fps == found.fps))


def require_match(wanted: Features, found: Features, who: str, whom: str) -> None:
    """Nothing if ``found`` (of ``who``) has what ``wanted`` (of ``whom``) has, and no more.

    Raises:
        FeaturesDiffer: the first differences in words, and the table of all.
    """
    rows = match(wanted, found)
    bad = [row for row in rows if not row.fits]
    if not bad:
        return
    said = "; ".join(_in_words(row) for row in bad[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
    raise FeaturesDiffer(
        f"{who} does not fit {whom}: {said}: rename what is called otherwise, leave out the rest", rows
    )


def order_of(wanted: Sequence[str], found: Sequence[str]) -> np.ndarray | None:
    """Places in ``found`` of the names ``wanted``; None where the order is the same."""
    return None if tuple(wanted) == tuple(found) else np.array([list(found).index(name) for name in wanted])


def _camera(name: str, size: tuple[int, int], found: Features) -> Row:
    there = found.cameras.get(name)
    shown = "" if there is None else _sized(name, there)
    return Row("camera", _sized(name, size), shown, there is not None and tuple(there) == tuple(size))


def _sized(name: str, size: tuple[int, int]) -> str:
    return f"{name} {size[0]}x{size[1]}"


def _in_words(row: Row) -> str:
    if row.wanted and row.found:
        return f"{row.kind} is {row.found}, expected {row.wanted}"
    return f"{row.kind} {row.wanted!r} is missing" if row.wanted else f"{row.kind} {row.found!r} is one too many"
