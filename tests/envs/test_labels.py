"""Labels for training say where things are: in the world, in the pictures, and which of them the sentence means."""

import mujoco
import numpy as np
import pytest

from moe_envs.labels import OUTSIDE, in_picture, label_names
from moe_envs.metaworld.env import MetaWorldEnv
from moe_envs.pitstop.env import PitStopEnv

CHANNEL = {"red_cube": 0, "green_block": 1, "blue_cube": 2}


def told(env) -> dict[str, float]:
    return dict(zip(env.environment_names, env.environment_state().tolist(), strict=True))


def at(numbers: dict[str, float], thing: str, axes: str) -> np.ndarray:
    return np.array([numbers[f"{thing}.{axis}"] for axis in axes.split()])


@pytest.fixture(scope="module")
def pitstop():
    env = PitStopEnv(objects="all", image_size=(96, 144))
    yield env
    env.close()


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_the_pixel_that_is_told_has_the_colour_of_the_thing(pitstop, camera):
    """Of a picture that is not square. The hand hides a thing now and then."""
    right = seen = 0
    for seed in range(12):
        observation, _ = pitstop.reset(seed=seed, options={"task": "pick_red_cube"})
        expert = pitstop.make_expert("pick_red_cube")
        for _ in range(6):
            observation, *_ = pitstop.step(expert.act())
        numbers = told(pitstop)
        for thing, channel in CHANNEL.items():
            u, v = at(numbers, thing, f"{camera}.u {camera}.v")
            if max(abs(u), abs(v)) >= 1:
                continue
            pixel = observation["pixels"][camera][int((v + 1) / 2 * 96), int((u + 1) / 2 * 144)].astype(int)
            seen += 1
            right += pixel[channel] - np.delete(pixel, channel).max() > 30
    assert seen >= 12
    assert right >= 0.8 * seen


@pytest.mark.parametrize(
    ("task", "thing", "goal"),
    [
        ("press_blue", "blue_button", "blue_button"),
        ("pick_green_block", "green_block", None),
        ("stack_red_on_blue", "red_cube", "blue_cube"),
        ("bin_yellow_wheel_left", "yellow_wheel", None),
        ("nut_on_peg", "purple_nut", None),
        ("push_block", "green_block", None),
    ],
)
def test_object_and_goal_are_what_the_sentence_means(pitstop, task, thing, goal):
    pitstop.reset(seed=3, options={"task": task})
    numbers = told(pitstop)
    np.testing.assert_array_equal(at(numbers, "object", "x y z"), at(numbers, thing, "x y z"))
    if goal:
        np.testing.assert_array_equal(at(numbers, "goal", "x y"), at(numbers, goal, "x y"))
    else:
        assert np.linalg.norm(at(numbers, "goal", "x y z") - at(numbers, "object", "x y z")) > 0.05


def test_what_a_camera_cannot_see_is_told_as_outside():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><camera name='c' pos='0 0 0' xyaxes='1 0 0 0 1 0' fovy='90'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)  # it looks along -z
    places = np.array([[0, 0, -1.0], [0.5, 0.5, -1.0], [1.5, 0, -1.0], [0, 0, 1.0], [90.0, -90.0, -1.0]])
    uv = in_picture(places, model, data, "c", (100, 200))
    np.testing.assert_allclose(uv[:3], [[0, 0], [0.25, -0.5], [0.75, 0]], atol=1e-12)
    np.testing.assert_array_equal(uv[3:], [[OUTSIDE, OUTSIDE], [OUTSIDE, OUTSIDE]])


def test_meta_world_tells_of_each_observed_camera_also_of_the_moving_one():
    env = MetaWorldEnv(task="push-v3", image_size=128, cameras=("close", "gripperPOV"), control_hz=20)
    assert env.environment_names == label_names(("object", "second_object", "goal"), ("close", "gripperPOV"))
    observation, _ = env.reset(seed=1)
    before = told(env)
    assert at(before, "second_object", "close.u close.v").tolist() == [OUTSIDE, OUTSIDE]
    u, v = at(before, "goal", "close.u close.v")
    red, green, blue = observation["pixels"]["close"][int((v + 1) * 64), int((u + 1) * 64)].astype(int)
    assert green > 30 + max(red, blue)  # the goal of push is a green ball
    for _ in range(5):
        env.step(np.array([1.0, 0.0, 0.0, 0.0], np.float32))
    after = told(env)
    env.close()
    np.testing.assert_allclose(at(after, "goal", "close.u close.v"), [u, v], atol=1e-6)
    moved = at(after, "goal", "gripperPOV.u gripperPOV.v") - at(before, "goal", "gripperPOV.u gripperPOV.v")
    assert np.abs(moved).max() > 0.1
