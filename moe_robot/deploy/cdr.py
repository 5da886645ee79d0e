"""Between ROS messages as plain dicts and CDR, as bags hold them. Needs ``rosbags`` (extra ``bags``), and no ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from moe_robot.types import UserError


def check_installed() -> None:
    """Refuse to go on without ``rosbags``.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("rosbags") is None:
        raise UserError("recordings need the package rosbags: install it with pip install 'moe-robot[bags]'")


class Writer:
    """Makes CDR of plain dicts, by the message definitions of ROS 2 Jazzy."""

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self._store = get_typestore(Stores.ROS2_JAZZY)

    def definition(self, kind: str) -> str:
        """The text of a message type, with those that it is made of."""
        return self._store.generate_msgdef(kind, ros_version=2)[0]

    def cdr(self, message: Mapping[str, Any], kind: str) -> bytes:
        """The message in CDR. What it lacks is empty or 0, what the type does not have is left out.

        Raises:
            ValueError: a value that the type does not take.
        """
        try:
            return bytes(self._store.serialize_cdr(self._built(message, kind), kind))
        except (TypeError, ValueError, AttributeError, OverflowError, KeyError) as error:
            raise ValueError(f"no {kind}: {' '.join(str(error).split())[:120]}") from error

    def _built(self, message: Mapping[str, Any], kind: str) -> Any:
        if not isinstance(message, Mapping):
            raise ValueError(f"{str(message)[:40]!r} is no {kind}")
        if kind in TIMES and "secs" in message:  # as ROS 1 spells it
            message = {"sec": message["secs"], "nanosec": message.get("nsecs", 0)}
        _, fields = self._store.fielddefs[kind]
        return self._store.types[kind](**{name: self._value(message.get(name), form) for name, form in fields})

    def _value(self, value: Any, form: Any) -> Any:
        node, detail = form[0].name, form[1]
        if node == "NAME":
            return self._built({} if value is None else value, detail)
        if node == "BASE":
            return _number_or_text(value, detail[0])
        (inner, inner_detail), _ = detail
        values = _several(value)
        if inner.name == "BASE" and inner_detail[0] != "string":
            if not isinstance(values, np.ndarray):
                values = [np.nan if entry is None else entry for entry in values]
            return np.asarray(values, NUMPY[inner_detail[0]])
        return [self._value(entry, (inner, inner_detail)) for entry in values]


TIMES = ("builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration")
WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
NUMPY = dict.fromkeys(("byte", "char", "octet"), "uint8") | {n: n for n in ("bool", "float32", "float64", *WHOLE)}


def _number_or_text(value: Any, kind: str) -> Any:
    if kind == "string":
        return "" if value is None else str(value).replace("\0", "")  # which ends a string in CDR
    if kind in ("float32", "float64"):
        return 0.0 if value is None else float(value)
    return bool(value) if kind == "bool" else int(value or 0)


def _several(value: Any) -> Sequence[Any] | np.ndarray:
    if value is None:
        return ()
    if isinstance(value, bytes | bytearray | memoryview):
        return np.frombuffer(value, np.uint8)
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f"{str(value)[:40]!r} is no list")
    return value


def plain(message: Any) -> Any:
    """A message that ``rosbags`` has read as plain dicts, lists, numbers, texts and arrays."""
    fields = getattr(message, "__dataclass_fields__", None)
    if fields is not None:
        return {name: plain(getattr(message, name)) for name in fields if name != "__msgtype__"}
    return [plain(entry) for entry in message] if isinstance(message, list | tuple) else message
