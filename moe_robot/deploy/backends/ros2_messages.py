"""The one door to ROS 2's Python packages: ``rclpy``, message types by their names, messages to plain dicts and back.

They come with an installation of ROS and not from the lock, so nothing here is imported before it is asked for.
"""

from __future__ import annotations

import array
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from moe_robot.types import UserError


def available() -> bool:
    """Whether this Python finds ``rclpy``; nothing is loaded."""
    return find_spec("rclpy") is not None


def ros2(module: str = "rclpy") -> Any:
    """``rclpy`` or one of its modules.

    Raises:
        UserError: there is none that this Python can load.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library of ROS that the linker does not find
        raise UserError(
            f"this Python has no ROS 2 ({str(error)[:200]}): source the setup.bash of one that was made for this "
            "version of Python, or choose --transport rosbridge"
        ) from None


@cache
def message_type(kind: str) -> Any:
    """The class of ``sensor_msgs/msg/JointState`` or ``std_srvs/srv/SetBool``; ``std_msgs/Header`` is a message too.

    Raises:
        UserError: its package is not installed, or has no such type.
    """
    package, *folder, name = kind.split("/")
    module = ros2(f"{package}.{folder[0] if folder else 'msg'}")
    if not hasattr(module, name):
        raise UserError(f"{package} has no {kind!r}: correct the type in the contract")
    return getattr(module, name)


def plain(message: Any) -> dict[str, Any]:
    """A message as rosbridge would give it, with numpy arrays for sequences of numbers."""
    return {name: _plain(getattr(message, name)) for name in message.get_fields_and_field_types()}


def _plain(value: Any) -> Any:
    if hasattr(value, "get_fields_and_field_types"):
        return plain(value)
    if isinstance(value, array.array):
        return np.asarray(value)
    return [_plain(part) for part in value] if isinstance(value, list) else value


def message(kind: str, fields: Mapping[str, Any]) -> Any:
    """The message of a type with these fields; those that are left out keep ROS's defaults.

    Raises:
        AssertionError, AttributeError, TypeError: of ROS, for fields that the type does not have or take.
    """
    made = message_type(kind)()
    kinds = made.get_fields_and_field_types()
    for name, value in fields.items():
        setattr(made, name, _filled(kinds.get(name, ""), value))
    return made


def _filled(kind: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return message(kind, value)
    if isinstance(value, bytes) and kind != "octet":
        return array.array("B", value)  # of bytes themselves ROS would check each one
    if isinstance(value, np.ndarray):
        return array.array(value.dtype.char, value.tobytes())
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        part = kind.removeprefix("sequence<").removesuffix(">").split(",")[0]
        return [message(part, item) for item in value]
    return value
