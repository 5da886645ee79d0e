"""The rosbridge v2 protocol as bytes: a client sends JSON, a bridge JSON or CBOR; what comes is not trusted."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import cbor2
import numpy as np

MAX_DEPTH = 16
"""Of lists and maps in one another; a JointTrajectory needs 6."""
MAX_ITEMS = 10_000
"""Values in one CBOR message, in which an array of numbers is one; texts and brackets in one of JSON."""
ARRAYS = {
    64: "u1", 68: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    81: ">f4", 82: ">f8", 85: "<f4", 86: "<f8",
}  # fmt: skip
"""CBOR tag of a typed array (RFC 8746) -> its dtype. No other tag is let through: some build objects of any size."""
FLOAT64 = 86
SIMULATED = "moe-robot-sim-node"
"""What the simulated robot's bridge calls itself when a connection is made: what answers so can hurt nobody."""

_JSON_PARTS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
"""A string, even one without an end, or a bracket. Linear in the length of the text, whatever it is."""


class BadFrame(ValueError):
    """A frame that is no rosbridge message, or too deep to be parsed; one line says why."""


def parse(frame: str | bytes) -> Mapping[str, Any]:
    """The message in a frame: a mapping with a text ``op``. Text is JSON, bytes are CBOR; typed arrays become numpy's.

    The websocket has limited the frame's length already.

    Raises:
        BadFrame: it is anything else.
    """
    message = _json(frame) if isinstance(frame, str) else _cbor(frame)
    if not isinstance(message, Mapping) or not isinstance(message.get("op"), str):
        raise BadFrame("a message without an operation")
    return message


def _json(text: str) -> Any:
    depth = 0
    for items, part in enumerate(_JSON_PARTS.finditer(text)):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part.group(), 0)
        if depth > MAX_DEPTH or items > MAX_ITEMS:
            raise BadFrame(f"JSON of more than {MAX_ITEMS} parts or nested deeper than {MAX_DEPTH}")
    try:
        return json.loads(text)  # NaN and null are both taken as not a number where a number should be
    except ValueError as error:
        raise BadFrame(f"no JSON: {str(error)[:80]}") from None


def _cbor(data: bytes) -> Any:
    _check_cbor(data)
    try:
        return _with_arrays(cbor2.loads(data))
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError) as error:
        raise BadFrame(f"no CBOR: {str(error)[:80]}") from None


def _with_arrays(value: Any) -> Any:
    """The same with numpy arrays for typed arrays. Not cbor2's tag hook: its arguments changed with version 6."""
    if isinstance(value, dict):
        return {key: _with_arrays(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_arrays(entry) for entry in value]
    if isinstance(value, cbor2.CBORTag):
        if not isinstance(value.value, bytes):
            raise BadFrame("a typed array that is not made of bytes")
        return np.frombuffer(value.value, ARRAYS[value.tag])
    return value


def _check_cbor(data: bytes) -> None:
    """Walk over the heads of all values (RFC 8949, section 3) without building any.

    Raises:
        BadFrame: nested too deeply, too many values, a tag that is no typed array's, or not one whole value.
    """
    at = items = 0
    open_: list[float] = [1]  # how many values each open container still takes; infinite until a break
    while open_:
        if open_[-1] == 0:
            open_.pop()
            continue
        if at >= len(data):
            raise BadFrame("CBOR that ends too early")
        major, info = data[at] >> 5, data[at] & 31
        if data[at] == 0xFF and open_[-1] == float("inf"):
            open_.pop()
            at += 1
            continue
        size = 1 << (info - 24) if 24 <= info <= 27 else 0
        argument = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else info
        at += 1 + size
        items += 1
        open_[-1] -= 1
        endless = info == 31 and 2 <= major <= 5
        if items > MAX_ITEMS or len(open_) > MAX_DEPTH:
            raise BadFrame(f"CBOR of more than {MAX_ITEMS} values or nested deeper than {MAX_DEPTH}")
        if info > 27 and not endless:
            raise BadFrame("CBOR with a head that has no meaning")
        if major == 6:
            if argument not in ARRAYS:
                raise BadFrame(f"CBOR with the tag {argument}, expected only those of typed arrays")
            open_.append(1)
        elif endless or major in (4, 5):
            open_.append(float("inf") if endless else argument * (major - 3))
        elif major in (2, 3):
            at += argument
    if at != len(data):
        raise BadFrame("CBOR that is cut short or followed by something else")


def _sent(**message: Any) -> str:
    return json.dumps(message, allow_nan=False)


def subscribe(topic: str, kind: str, cbor: bool) -> str:
    """Ask for the newest message of a topic, as CBOR or as JSON."""
    compression = "cbor" if cbor else "none"
    return _sent(op="subscribe", topic=topic, type=kind, compression=compression, throttle_rate=0, queue_length=1)


def unsubscribe(topic: str) -> str:
    """Ask for no more of it."""
    return _sent(op="unsubscribe", topic=topic)


def advertise(topic: str, kind: str) -> str:
    """Announce a topic; the bridge is to keep no more than the newest message for those who come late."""
    return _sent(op="advertise", topic=topic, type=kind, queue_size=1, latch=False)


def publish(topic: str, message: Mapping[str, Any]) -> str:
    """Send one message. NaN and infinity, which JSON does not have, raise a ValueError."""
    return _sent(op="publish", topic=topic, msg=message)


def told(topic: str, message: Mapping[str, Any], cbor: bool) -> str | bytes:
    """A message as a bridge sends it. In JSON its bytes become base64, and its arrays of float64 lists.

    NaN and infinity, which JSON does not have, raise a ValueError.
    """
    if cbor:
        return cbor2.dumps({"op": "publish", "topic": topic, "msg": message}, default=_typed_array)
    return json.dumps({"op": "publish", "topic": topic, "msg": message}, allow_nan=False, default=_plain)


def status(complaint: str) -> str:
    """What a bridge says to a client that it does not understand."""
    return _sent(op="status", level="error", msg=complaint)


def service_response(service: str, number: str, success: bool, answer: str) -> str:
    """What a bridge answers to the call with the id ``number`` of a ``std_srvs/srv/Trigger``."""
    values = {"success": success, "message": answer}
    named = {"id": number} if number else {}
    return _sent(op="service_response", service=service, values=values, result=success, **named)


def _typed_array(encoder: Any, value: np.ndarray) -> None:
    encoder.encode(cbor2.CBORTag(FLOAT64, np.asarray(value, "<f8").tobytes()))


def _plain(value: bytes | np.ndarray) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value.tolist()
