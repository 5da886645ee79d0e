"""How verbs open demonstrations: a data set or a mixture, with the choices that ``train`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.data.loader import Dataset
    from moe_robot.data.mixture import Mixture

CHOICES = ("tasks", "episodes", "cameras", "rename")
Split = Literal["train", "validation", "all"]


class Selection(Protocol):
    """The options by which demonstrations are chosen, as :class:`moe_robot.training.config.TrainConfig` has them."""

    @property
    def tasks(self) -> str | None: ...  # noqa: D102
    @property
    def episodes(self) -> str | None: ...  # noqa: D102
    @property
    def cameras(self) -> str | None: ...  # noqa: D102
    @property
    def rename(self) -> tuple[str, ...]: ...  # noqa: D102


def open_selected(data: Path, options: Selection, split: Split, frames: Literal["cache", "stream"] = "cache") -> Any:
    """The chosen demonstrations, one action per frame: a :class:`Dataset`, or the :class:`Mixture` of a YAML file.

    Raises:
        UserError: what :func:`moe_robot.data.mixture.open_data` refuses, or the files cannot be read.
    """
    from moe_robot.data.mixture import open_data
    from moe_robot.data.selection import parse_rename

    chosen: dict[str, Any] = {"episodes": options.episodes, "rename": parse_rename(options.rename)}
    for name in ("tasks", "cameras"):
        given = getattr(options, name)
        names = None if given is None else [part for part in map(str.strip, given.split(",")) if part]
        if names == []:
            raise UserError(f"--{name} names none: name some of the demonstrations', or leave it out")
        chosen[name] = names
    try:
        found: Dataset | Mixture = open_data(data, 1, split, frames=frames, **chosen)
    except OSError as error:
        raise UserError(f"cannot read the demonstrations in {data}: {error.strerror or error}") from error
    return found


def is_demonstrations(path: Path) -> bool:
    """Whether this is a data set's folder or a mixture's file, and no recording of a robot."""
    return (path / "meta").is_dir() or path.suffix in (".yaml", ".yml")
