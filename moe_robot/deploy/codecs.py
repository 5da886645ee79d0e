"""Between ROS messages as plain dicts and the records here: pictures, joint states, stamps; commands. No ROS import.

Whatever does not fit the contract is a :class:`BadMessage`; nothing is guessed or repaired.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from moe_robot.deploy.contract import Contract
from moe_robot.deploy.contract_topics import Camera
from moe_robot.deploy.picture_header import picture_size

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}
MAX_JOINTS = 256
"""Of one JointState message."""
ENCODED_OVER_RAW = 2
"""An encoded picture may be this many times as long as its pixels, and a JPEG with thousands of scans may not."""


class BadMessage(ValueError):
    """A message that does not fit the contract; one line says why."""


def stamp_of(message: Mapping[str, Any]) -> float:
    """The stamp of the message's header, seconds; of ROS 1 (``secs``, ``nsecs``) or ROS 2 (``sec``, ``nanosec``)."""
    header = message.get("header")
    stamp = header.get("stamp") if isinstance(header, Mapping) else None
    if isinstance(stamp, Mapping):
        for seconds, nanoseconds in (("sec", "nanosec"), ("secs", "nsecs")):
            if seconds in stamp and nanoseconds in stamp:
                parts = [_number(stamp[key], f"header.stamp.{key}") for key in (seconds, nanoseconds)]
                if parts == [0.0, 0.0] or not all(map(math.isfinite, parts)):
                    raise BadMessage("it is not stamped: the publisher must fill header.stamp")
                return parts[0] + 1e-9 * parts[1]
    raise BadMessage("it has no header with a stamp")


def picture(message: Mapping[str, Any], camera: Camera) -> np.ndarray:
    """The picture of a CompressedImage or Image message, uint8 (H, W, 3), RGB, in the contract's size."""
    compressed = camera.type.endswith("CompressedImage")
    pixels = _compressed(message, camera) if compressed else _raw(message, camera)
    height, width = camera.size
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels)


def _compressed(message: Mapping[str, Any], camera: Camera) -> np.ndarray:
    data = data_of(message)
    height, width = camera.published_size or camera.size
    stated = picture_size(data)
    if stated is None:
        raise BadMessage(f"format {str(message.get('format'))[:40]!r} is no JPEG or PNG of 8 bits per sample")
    if stated != (height, width):
        raise BadMessage(f"the picture is {stated[0]}x{stated[1]}, expected {height}x{width}")
    longest = ENCODED_OVER_RAW * 3 * height * width + 2**16
    if len(data) > longest:
        raise BadMessage(f"{len(data)} bytes for a picture of {height}x{width}, expected {longest} at most")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadMessage(f"it cannot be decoded ({error.err})") from error
    if pixels is None or pixels.shape != (height, width, 3):
        raise BadMessage("it cannot be decoded: the data are damaged")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _raw(message: Mapping[str, Any], camera: Camera) -> np.ndarray:
    expected = camera.published_size or camera.size
    height, width = (_whole(message.get(key), key) for key in ("height", "width"))
    if (height, width) != expected:
        raise BadMessage(f"the picture is {height}x{width}, expected {expected[0]}x{expected[1]}")
    return raw_picture(message)


def raw_picture(message: Mapping[str, Any]) -> np.ndarray:
    """The picture of an Image message in its own size, uint8 (H, W, 3), RGB."""
    encoding = message.get("encoding")
    if not isinstance(encoding, str) or encoding not in CHANNELS:
        raise BadMessage(f"encoding {str(encoding)[:40]!r} is not read: expected {', '.join(CHANNELS)}")
    data, channels = data_of(message), CHANNELS[encoding]
    height, width, step = (_whole(message.get(key), key) for key in ("height", "width", "step"))
    if step < width * channels or height * step != len(data):
        raise BadMessage(f"{len(data)} bytes in rows of {step} do not make {height}x{width} in {encoding}")
    rows = np.frombuffer(data, np.uint8).reshape(height, step)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    if encoding == "mono8":
        return np.repeat(pixels, 3, axis=2)
    return pixels if encoding == "rgb8" else pixels[:, :, ::-1]


def joint_state(message: Mapping[str, Any], contract: Contract) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """Positions (N,) and velocities (N,) in the contract's order, and the gripper's opening.

    Joints are found by name, in whatever order and among whatever others. A null, as JSON has in place of NaN, is NaN:
    the safety gate stops the robot for it.
    """
    names = message.get("name")
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) > MAX_JOINTS:
        raise BadMessage(f"name is no list of up to {MAX_JOINTS} joints")
    wanted = [*contract.topic_names, *(contract.gripper.joints if contract.gripper else ())]
    places = {name: i for i, name in enumerate(names) if isinstance(name, str)}
    missing = [name for name in wanted if name not in places]
    if missing:
        raise BadMessage(f"joint {missing[0]!r} is missing: it has {', '.join(map(repr, names[:12]))}")
    if len(places) != len(names):
        raise BadMessage("a joint's name stands twice or is no text")
    index = [places[name] for name in wanted]
    n = len(contract.joints)
    positions = _numbers(message.get("position"), "position", len(names))[index]
    velocities = message.get("velocity")
    if velocities is not None:  # an empty list where a robot does not tell them
        velocities = _numbers(velocities, "velocity", len(names))[index][:n] if len(_list(velocities)) else None
    return positions[:n], velocities, float(positions[n:].sum()) if contract.gripper else None


def data_of(message: Mapping[str, Any]) -> bytes:
    """The field ``data``: bytes from CBOR, base64 from JSON."""
    data = message.get("data")
    if isinstance(data, str):
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise BadMessage("data is a text and no base64") from None
    if isinstance(data, np.ndarray) and data.dtype == np.uint8:
        return data.tobytes()
    if not isinstance(data, bytes):
        raise BadMessage(f"data is {type(data).__name__}, expected bytes")
    return data


def _number(value: Any, what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise BadMessage(f"{what} is {str(value)[:40]!r}, expected a number")


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadMessage(f"{what} is {str(value)[:40]!r}, expected a whole number")
    return value


def _list(values: Any) -> Sequence[Any] | np.ndarray:
    if isinstance(values, np.ndarray) or (isinstance(values, Sequence) and not isinstance(values, str | bytes)):
        return values
    raise BadMessage(f"{str(values)[:40]!r} is no list of numbers")


def _numbers(values: Any, what: str, n: int) -> np.ndarray:
    """(n,) float64 from a list of numbers and nulls, or from an array."""
    values = _list(values)
    if len(values) != n:
        raise BadMessage(f"{what} has {len(values)} numbers for {n} names")
    if isinstance(values, np.ndarray):
        return values.astype(float)
    return np.array([math.nan if value is None else _number(value, what) for value in values], dtype=float)
