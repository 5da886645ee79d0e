import json
import math

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_robot.deploy.backends import rosbridge_wire as wire

DTYPES = ["u1", "<u2", ">u2", "<u4", ">u4", "<u8", ">u8", "i1", "<i2", ">i2", "<i4", ">i4", "<i8", ">i8",
          "<f4", ">f4", "<f8", ">f8"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=20,
)  # fmt: skip


def publish(msg):
    return {"op": "publish", "topic": "/a", "msg": msg}


def says(frame):
    with pytest.raises(wire.BadFrame) as caught:
        wire.parse(frame)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nested(depth):
    return publish([]) if not depth else {"op": "publish", "msg": [nested(depth - 1)]}


@given(VALUES)
def test_what_was_written_as_cbor_is_read(value):
    message = publish(value)
    for canonical in (False, True):
        assert wire.parse(cbor2.dumps(message, canonical=canonical)) == message


@given(VALUES)
def test_what_was_written_as_json_is_read(value):
    message = publish(json.loads(json.dumps(value, default=str)))
    assert wire.parse(json.dumps(message)) == message


@pytest.mark.parametrize("dtype", DTYPES)
def test_typed_arrays_become_numpy_arrays(dtype):
    tag = next(tag for tag, kind in wire.ARRAYS.items() if kind == dtype)
    values = np.array([1, 2, 100], dtype=dtype)
    seen = wire.parse(cbor2.dumps(publish({"data": cbor2.CBORTag(tag, values.tobytes())})))["msg"]["data"]
    np.testing.assert_array_equal(seen, values)


def test_maps_and_lists_of_unstated_length_are_read():
    frame = b"\xbf\x62op\x67publish\x63msg\x9f\x01\x7f\x61a\x61b\xff\xff\xff"
    assert wire.parse(frame) == {"op": "publish", "msg": [1, "ab"]}
    assert "ends too early" in says(frame[:-1])


def test_json_that_says_not_a_number_is_not_a_number():
    assert math.isnan(wire.parse('{"op": "publish", "msg": [NaN]}')["msg"][0])


@pytest.mark.parametrize(
    ("frame", "wrong"),
    [
        ("{", "no JSON"),
        ('{"op": "publish", "msg": ' + "9" * 5000 + "}", "no JSON"),
        ("[1]", "without an operation"),
        ('{"op": 5}', "without an operation"),
        ("[" * 100_000, "nested deeper than 16"),
        ('{"a":' * 100_000, "nested deeper than 16"),
        ('"' * 100_000, "JSON of more than 10000 parts"),
        (b"", "ends too early"),
        (b"\x81" * 100_000, "nested deeper than 16"),
        (b"\x9f" * 100_000, "nested deeper than 16"),
        (b"\x9b" + b"\xff" * 8, "ends too early"),
        (b"\x5b" + b"\xff" * 8 + b"abc", "cut short"),
        (b"\x99\xff\xff" + b"\x00" * 65535, "more than 10000 values"),
        (cbor2.dumps(publish(1)) + b"\x00", "followed by something else"),
        (cbor2.dumps(publish(2**70)), "the tag 2"),
        (cbor2.dumps(publish(cbor2.CBORTag(4, [10**9, 1]))), "the tag 4"),
        (cbor2.dumps(publish(cbor2.CBORTag(35, "(a+)+"))), "the tag 35"),
        (cbor2.dumps(publish(cbor2.CBORTag(86, [1]))), "not made of bytes"),
        (cbor2.dumps(publish(cbor2.CBORTag(86, b"1234567"))), "no CBOR"),
        (cbor2.dumps([1]), "without an operation"),
        (b"\x1c", "no meaning"),
        (b"\xff", "no meaning"),
        (b"\x61\xff", "no CBOR"),
    ],
)
def test_what_is_no_message_or_would_cost_too_much_is_refused(frame, wrong):
    assert wrong in says(frame)


def test_depth_is_allowed_up_to_the_limit_in_both_forms():
    assert wire.parse(json.dumps(nested(7)))
    assert wire.parse(cbor2.dumps(nested(7)))
    assert "deeper" in says(json.dumps(nested(8)))
    assert "deeper" in says(cbor2.dumps(nested(8)))


def test_brackets_inside_texts_are_not_depth():
    assert wire.parse(json.dumps(publish('\\"' + "[{" * 100)))["msg"].endswith("[{")


@settings(max_examples=500)
@given(st.binary(max_size=60) | st.text(max_size=60) | VALUES.map(lambda v: cbor2.dumps(publish(v))[:-1] + b"\xf9"))
def test_no_frame_breaks_the_parser(frame):
    refused = ""
    try:
        assert isinstance(wire.parse(frame)["op"], str)
    except wire.BadFrame as error:
        refused = str(error)
    assert "\n" not in refused


def test_nothing_that_is_no_json_is_written():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            wire.publish("/a", {"data": [value]})


def test_a_topic_is_asked_for_as_its_newest_message_and_announced_with_a_queue_of_one():
    assert json.loads(wire.subscribe("/a", "t", cbor=True)) == {
        "op": "subscribe", "topic": "/a", "type": "t", "compression": "cbor", "throttle_rate": 0, "queue_length": 1,
    }  # fmt: skip
    assert json.loads(wire.subscribe("/a", "t", cbor=False))["compression"] == "none"
    announced = json.loads(wire.advertise("/a", "t"))
    assert (announced["queue_size"], announced["latch"]) == (1, False)
