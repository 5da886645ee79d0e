"""The frames: numpy arrays come back as they were, and nothing else than plain data comes in."""

import random
from contextlib import suppress

import msgpack
import numpy as np
import pytest

from moe_robot.deploy.serving.wire import DTYPES, Caps, WireError, pack, unpack


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_arrays_and_scalars_come_back_as_they_were(dtype):
    values = (np.arange(12) % 2).astype(dtype).reshape(2, 3, 2)
    back = unpack(pack({"a": values, "s": values[0, 1, 1], "empty": values[:0], "text": "ü", "list": [1, 2.5, None]}))
    assert back["a"].dtype == values.dtype
    np.testing.assert_array_equal(back["a"], values)
    assert back["s"] == values[0, 1, 1]
    assert np.asarray(back["s"]).dtype == values.dtype
    assert back["empty"].shape == (0, 3, 2)
    assert back["text"] == "ü"
    assert back["list"] == [1, 2.5, None]


def test_arrays_in_another_order_in_memory_arrive_in_order():
    values = np.arange(12, dtype=">i4").reshape(3, 4).T
    np.testing.assert_array_equal(unpack(pack({"a": values}))["a"], values)


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["text"]), np.array([1j]), np.zeros(2, "i4,f4")])
def test_objects_strings_and_records_are_not_sent(array):
    with pytest.raises(WireError, match="cannot be sent"):
        pack({"a": array})


def _array(**changes) -> bytes:
    entries = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    entries |= {key.encode(): value for key, value in changes.items()}
    return msgpack.packb({"a": {key: value for key, value in entries.items() if value is not ...}})


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (b"\x81\xa1a", "no msgpack"),
        (msgpack.packb({"a": 1}) + b"\0", "no msgpack"),
        (msgpack.packb({"a": b"raw"}), "raw bytes"),
        (msgpack.packb({b"a": 1}), "expected a string"),
        (msgpack.packb({1: 1}), "no msgpack"),
        (msgpack.packb({"a": msgpack.ExtType(5, b"")}), "ExtType"),
        (msgpack.packb({"a": msgpack.ExtType(5, b"pickle")}), "no msgpack"),
        (msgpack.packb({"a": msgpack.Timestamp(5)}), "no msgpack"),
        (_array(dtype="|O"), "expected one of"),
        (_array(dtype="O8"), "expected one of"),
        (_array(dtype=["<f4"]), "no msgpack"),
        (_array(dtype="<M8[s]"), "expected one of"),
        (_array(shape=[3]), "has 8 bytes, not 12"),
        (_array(shape=[-2]), "whole numbers"),
        (_array(shape=[2.0]), "whole numbers"),
        (_array(shape=[1] * 7), "up to 5"),
        (_array(shape=[2**62, 0], data=b""), "a"),
        (_array(shape=...), "and nothing else"),
        (_array(data="text"), "has str bytes"),
        (_array(more=1), "and nothing else"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}), "a number"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "does not fit"),
        (msgpack.packb({"a": {"b": {"c": {"d": 1}}}}), "in each other"),
        (b"\x91" * 500 + b"\xc0", "in each other"),
        (b"\x91" * 100_000 + b"\xc0", "no msgpack"),
        (msgpack.packb([[]] * 4000), "over 4096 items"),
        (msgpack.packb([[0] * 100] * 50), "over 4096 items"),
        (msgpack.packb(["x" * 5000]), "5000 characters"),
        (b"\xdd\xff\xff\xff\xff", "no msgpack"),
        (b"\xc6\xff\xff\xff\xff", "no msgpack"),
        (bytes(5 * 2**20), "expected at most"),
    ],
)  # fmt: skip
def test_what_is_not_plain_and_small_is_refused_in_one_line(frame, said):
    with pytest.raises(WireError, match=said) as refused:
        unpack(frame)
    assert len(str(refused.value).splitlines()) == 1


def test_damaged_frames_are_read_or_refused_and_nothing_else():
    rng = random.Random(0)
    good = pack({"a": np.arange(6.0), "b": {"c": [1, "two"]}, "s": np.float32(3)})
    for _ in range(3000):
        frame = bytearray(good[: rng.randint(0, len(good))] if rng.random() < 0.3 else good)
        for _ in range(rng.randint(0, 4)):
            if frame:
                frame[rng.randrange(len(frame))] = rng.randrange(256)
        with suppress(WireError):  # any other error fails the test
            unpack(bytes(frame))


def test_arrays_count_as_one_item_however_large_they_are():
    assert unpack(pack([np.zeros(10_000)]), Caps(items=64))[0].shape == (10_000,)
