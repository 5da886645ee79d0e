import base64
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_robot.deploy import command_messages
from moe_robot.deploy.codecs import BadMessage, joint_state, picture, stamp_of
from moe_robot.deploy.contract_topics import Camera
from moe_robot.deploy.inbox import Inbox
from moe_robot.deploy.picture_header import picture_size
from moe_robot.deploy.robot_io import JointCommand, TwistCommand

RGB = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
BGR = RGB[:, :, ::-1]
COMPRESSED = Camera("/a", "sensor_msgs/msg/CompressedImage", (12, 16), 10, 1)
RAW = replace(COMPRESSED, type="sensor_msgs/msg/Image")


def encoded(form, image=BGR, *options):
    return cv2.imencode(form, image, options)[1].tobytes()


def raw(data, encoding="rgb8", height=12, width=16, step=48):
    return {"data": data, "encoding": encoding, "height": height, "width": width, "step": step, "is_bigendian": 0}


def says(call, *arguments):
    with pytest.raises(BadMessage) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_png_comes_over_bit_for_bit_from_bytes_arrays_and_base64():
    data = encoded(".png")
    for form in (data, np.frombuffer(data, np.uint8), base64.b64encode(data).decode()):
        np.testing.assert_array_equal(picture({"format": "png", "data": form}, COMPRESSED), RGB)


def test_a_jpeg_has_its_colours_in_the_right_order():
    red = np.zeros((12, 16, 3), np.uint8)
    red[:, :, 2] = 255  # BGR
    pixels = picture({"format": "rgb8; jpeg compressed bgr8", "data": encoded(".jpg", red)}, COMPRESSED)
    assert pixels.mean(axis=(0, 1)) == pytest.approx([254, 0, 0], abs=3)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_the_size_of_a_jpeg_of_every_kind_is_read_from_its_header(options):
    assert picture_size(encoded(".jpg", BGR, *options)) == (12, 16)
    assert picture_size(encoded(".jpg", BGR[:, :, 0], *options)) == (12, 16)


@pytest.mark.parametrize(
    ("encoding", "sent"), [("rgb8", RGB), ("bgr8", BGR), ("mono8", RGB[:, :, 0])], ids=["rgb8", "bgr8", "mono8"]
)
def test_raw_pictures_are_read_with_padded_rows(encoding, sent):
    rows = np.ascontiguousarray(sent).reshape(12, -1)
    padded = np.pad(rows, ((0, 0), (0, 5)))
    seen = picture(raw(padded.tobytes(), encoding, step=padded.shape[1]), RAW)
    np.testing.assert_array_equal(seen, np.repeat(sent[:, :, None], 3, 2) if encoding == "mono8" else RGB)


def test_a_picture_is_resized_only_when_the_contract_says_so():
    big = np.full((24, 32, 3), 77, np.uint8)
    message = {"format": "png", "data": encoded(".png", big)}
    assert picture(message, replace(COMPRESSED, published_size=(24, 32))).shape == (12, 16, 3)
    assert says(picture, message, COMPRESSED) == "the picture is 24x32, expected 12x16"


def _bomb(form):
    data = bytearray(encoded(form))
    if form == ".png":
        data[16:24] = (60000).to_bytes(4, "big") * 2
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


@pytest.mark.parametrize("form", [".png", ".jpg"])
def test_a_picture_that_claims_gigapixels_is_refused_before_it_is_decoded(form, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    assert "expected 12x16" in says(picture, {"format": "x", "data": _bomb(form)}, COMPRESSED)


def test_a_size_hidden_where_only_the_decoder_would_look_is_refused():
    small, big = encoded(".jpg"), encoded(".jpg", np.zeros((64, 64, 3), np.uint8))
    frame = small[small.index(b"\xff\xc0") :][:19]
    # To the decoder FF00 is no marker, and it goes on to look inside; to a careless reader it is a segment to skip.
    hidden = b"\xff\xd8\xff\x00" + (2 + len(big[2:])).to_bytes(2, "big") + big[2:] + frame
    assert picture_size(hidden) is None


def test_a_jpeg_far_longer_than_its_pixels_is_refused():
    data = encoded(".jpg")
    padding = b"\xff\xfe\xff\xff" + bytes(65533)
    assert "bytes for a picture of 12x16" in says(picture, {"data": data[:2] + padding * 2 + data[2:]}, COMPRESSED)


@pytest.mark.parametrize(
    ("message", "camera", "wrong"),
    [
        ({"format": "jpeg", "data": b"\xff\xd8\xff"}, COMPRESSED, "no JPEG or PNG"),
        ({"format": "png", "data": encoded(".png", BGR.astype(np.uint16))}, COMPRESSED, "8 bits per sample"),
        ({"format": "png", "data": encoded(".png")[:60]}, COMPRESSED, "cannot be decoded"),
        ({"format": "png", "data": "no base64!"}, COMPRESSED, "no base64"),
        ({"format": "png", "data": [1, 2, 3]}, COMPRESSED, "data is list, expected bytes"),
        ({}, COMPRESSED, "data is NoneType"),
        (raw(bytes(576), "16UC1"), RAW, "encoding '16UC1' is not read: expected rgb8, bgr8, mono8"),
        (raw(bytes(575)), RAW, "575 bytes in rows of 48 do not make 12x16 in rgb8"),
        (raw(bytes(12 * 47), step=47), RAW, "do not make"),
        (raw(bytes(576), height=11), RAW, "the picture is 11x16, expected 12x16"),
        (raw(bytes(576), height=None), RAW, "height is 'None', expected a whole number"),
        (raw(bytes(576), step=48.0), RAW, "step is '48.0', expected a whole number"),
    ],
)
def test_a_picture_that_is_not_as_the_contract_says_is_refused_with_the_reason(message, camera, wrong):
    assert wrong in says(picture, message, camera)


def joints(pitstop, **changes):
    names = [*pitstop.topic_names, *pitstop.gripper.joints]
    message = {"name": names, "position": [0.1 * i for i in range(9)], "velocity": [float(i) for i in range(9)]}
    return message | changes


def test_joints_are_found_by_name_in_any_order_among_others(pitstop):
    expected = joint_state(joints(pitstop), pitstop)
    np.testing.assert_allclose(expected[0], 0.1 * np.arange(7))
    np.testing.assert_allclose(expected[1], np.arange(7))
    assert expected[2] == pytest.approx(0.7 + 0.8)
    plain, order = joints(pitstop), np.random.default_rng(0).permutation(9)
    shuffled = {key: [*("wheel",) * (key == "name"), *(7.0,) * (key != "name"), *(plain[key][i] for i in order)]
                for key in plain}  # fmt: skip
    for mine, theirs in zip(joint_state(shuffled, pitstop), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_velocities_may_be_left_out_and_null_is_not_a_number(pitstop):
    assert joint_state(joints(pitstop, velocity=[]), pitstop)[1] is None
    assert joint_state({k: v for k, v in joints(pitstop).items() if k != "velocity"}, pitstop)[1] is None
    assert math.isnan(joint_state(joints(pitstop, position=[None] + [0.0] * 8), pitstop)[0][0])
    array = joint_state(joints(pitstop, position=np.arange(9.0), velocity=np.zeros(0)), pitstop)
    np.testing.assert_array_equal(array[0], np.arange(7.0))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"name": ["panda_joint1"], "position": [0.0]}, "joint 'panda_joint2' is missing: it has 'panda_joint1'"),
        ({"name": None}, "name is no list"),
        ({"name": ["a"] * 999}, "no list of up to 256"),
        ({"position": [0.0] * 8}, "position has 8 numbers for 9 names"),
        ({"position": np.zeros((9, 1))[:8]}, "position has 8 numbers for 9 names"),
        ({"position": ["0"] * 9}, "position is '0', expected a number"),
        ({"position": [10**400] + [0] * 8}, "expected a number"),
        ({"position": [True] * 9}, "expected a number"),
        ({"position": 3}, "'3' is no list of numbers"),
        ({"velocity": [0.0]}, "velocity has 1 numbers for 9 names"),
    ],
)
def test_a_joint_state_that_is_not_as_the_contract_says_is_refused(pitstop, changes, wrong):
    assert wrong in says(joint_state, joints(pitstop, **changes), pitstop)


def test_a_joint_named_twice_is_refused(pitstop):
    plain = joints(pitstop)
    twice = {key: [*values, values[0]] for key, values in plain.items()}
    assert "stands twice" in says(joint_state, twice, pitstop)


def test_stamps_of_ros_1_and_ros_2_are_read_and_unstamped_messages_refused():
    assert stamp_of({"header": {"stamp": {"sec": 5, "nanosec": 500_000_000}}}) == 5.5
    assert stamp_of({"header": {"stamp": {"secs": 5, "nsecs": 1}}}) == pytest.approx(5.000000001)
    for header in (None, {}, {"stamp": 5}, {"stamp": {"sec": 5}}, {"stamp": {"sec": "5", "nanosec": 0}}):
        assert says(stamp_of, {"header": header})
    assert "not stamped" in says(stamp_of, {"header": {"stamp": {"sec": 0, "nanosec": 0}}})


def test_joint_commands_become_full_messages(pitstop, chunks):
    command = JointCommand(np.arange(14.0).reshape(2, 7), 0.04, 0.0)
    half = replace(pitstop, gripper=replace(pitstop.gripper, command=(10.0, 30.0)))
    sent = command_messages.messages(command, half, 0.0)
    assert sent["/forward_position_controller/commands"]["data"] == list(range(7))
    assert sent["/gripper_controller/commands"]["data"] == pytest.approx([20.0])
    trajectory = command_messages.messages(replace(command, opening=None), chunks, 0.0)
    assert set(trajectory) == {"/arm/joint_trajectory"}
    message = trajectory["/arm/joint_trajectory"]
    assert message["joint_names"] == list(chunks.topic_names)
    assert [point["time_from_start"] for point in message["points"]] == [
        {"sec": 0, "nanosec": 100_000_000}, {"sec": 0, "nanosec": 200_000_000}
    ]  # fmt: skip
    assert message["header"]["stamp"] == {"sec": 0, "nanosec": 0}


def test_a_twist_is_stamped_and_named_by_its_frame_as_ros_1_and_ros_2_spell_it(twists):
    command = TwistCommand(np.arange(6.0), None, 0.0)
    message = command_messages.messages(command, twists, 7.25)["/servo/twist"]
    assert message["header"] == {"stamp": {"sec": 7, "nanosec": 250_000_000}, "frame_id": "panda_link0"}
    assert message["twist"] == {"linear": {"x": 0, "y": 1, "z": 2}, "angular": {"x": 3, "y": 4, "z": 5}}
    old = command_messages.messages(command, replace(twists, ros=1), 7.25)["/servo/twist"]
    assert old["header"]["stamp"] == {"secs": 7, "nsecs": 250_000_000}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=6,
)
FIELDS = ("header", "name", "position", "velocity", "data", "format", "encoding", "height", "width", "step")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_message_breaks_the_inbox(pitstop, data):
    broken = replace(pitstop, cameras={"raw": replace(RAW, topic="/raw"), **pitstop.cameras})
    inbox = Inbox(broken)
    good = {"header": {"stamp": {"sec": 100, "nanosec": 0}}, "format": "png", **raw(encoded(".png"))} | joints(pitstop)
    changed = data.draw(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3))
    topic = data.draw(st.sampled_from(["/raw", "/front/image_raw/compressed", "/joint_states"]))
    inbox.take(topic, good | changed, 100.0, 100.0)
    snapshot = inbox.snapshot()
    assert all(image.pixels.dtype == np.uint8 and image.pixels.ndim == 3 for image in snapshot.images.values())
    assert len(inbox.status(True).trouble or "") <= 300
