"""Pictures: sizes, colours where the things are, the same bits again, GL freed without noise."""

import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest

from moe_envs.pitstop.env import PICTURE_SIZE, PitStopEnv
from moe_envs.rendering import CameraRenderer, tune_for_speed

COLOURS = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="module", params=["fast", "full"])
def world(request):
    env = PitStopEnv(render=request.param, image_size=96)
    yield env
    env.close()


def pixel(env, camera, point, size):
    """Row and column where a world point (3,) appears, by the pinhole model: the oracle for camera poses."""
    index = env.model.camera(camera).id
    eye, axes = env.data.cam_xpos[index], env.data.cam_xmat[index].reshape(3, 3)
    x, y, z = axes.T @ (np.asarray(point) - eye)
    focal = size[0] / 2 / np.tan(np.radians(env.model.cam_fovy[index]) / 2)
    return int(size[0] / 2 - focal * y / -z), int(size[1] / 2 + focal * x / -z)


def dominant(colour):
    """The channel that outshines the other two by half, or None."""
    order = np.argsort(colour)
    return int(order[2]) if colour[order[2]] > 1.5 * max(colour[order[1]], 1) else None


def test_buttons_and_cubes_show_their_colour_where_the_camera_model_says(world):
    seen = 0
    for seed in range(6):
        observation, _ = world.reset(seed=seed)
        state = world.state()
        picture = observation["pixels"]["front"]
        spots = {colour: state.buttons[colour] for colour in COLOURS}
        spots |= {"red": state.objects["red_cube"].position, "blue": state.objects["blue_cube"].position}
        for colour, point in spots.items():
            row, column = pixel(world, "front", point, (96, 96))
            assert 2 <= row < 94, "the things must lie inside the front picture"
            assert 2 <= column < 94, "the things must lie inside the front picture"
            seen += dominant(picture[row, column].astype(float)) == COLOURS[colour]
    assert seen >= 0.85 * 6 * len(spots)  # the arm may stand before one


def test_the_wrist_camera_sees_what_is_held(world):
    world.reset(seed=1, options={"task": "pick_red_cube"})
    expert = world.make_expert("pick_red_cube")
    terminated = False
    while not terminated:
        observation, _, terminated, _, info = world.step(expert.act())
    assert info["success"]
    row, column = pixel(world, "wrist", world.state().objects["red_cube"].position, (96, 96))
    assert dominant(observation["pixels"]["wrist"][row, column].astype(float)) == COLOURS["red"]


def test_the_robots_left_is_at_the_right_of_the_front_picture(world):
    world.reset(seed=0)
    _, left = pixel(world, "front", [0.5, 0.1, 0], (96, 96))
    _, right = pixel(world, "front", [0.5, -0.1, 0], (96, 96))
    assert left > 48 > right


def test_a_picture_depends_on_the_state_alone_and_not_on_the_picture_before(world):
    world.reset(seed=1)
    first = world.pictures()
    world.reset(seed=2)
    world.pictures()
    world.reset(seed=1)
    for camera, picture in world.pictures().items():
        np.testing.assert_array_equal(picture, first[camera])


@pytest.mark.parametrize("name", ["moe_robot/PitStop-v0", "moe_robot/MetaWorld-v0"])
def test_the_first_picture_of_all_and_one_after_a_picture_for_people_are_no_others(name):
    cameras = ("front", "wrist") if "PitStop" in name else ("corner2", "close")
    env = gymnasium.make(name, cameras=cameras, render_mode="rgb_array").unwrapped
    first = env.reset(seed=0)[0]["pixels"]
    second = env.pictures()
    env.render()
    third = env.pictures()
    env.close()
    assert list(first) == list(cameras)
    for camera, picture in first.items():
        np.testing.assert_array_equal(second[camera], picture)
        np.testing.assert_array_equal(third[camera], picture)


def test_sizes_follow_the_option_and_render_gives_a_large_picture_for_people():
    env = PitStopEnv(image_size=(40, 72), cameras=("wrist",), render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert {name: p.shape for name, p in observation["pixels"].items()} == {"wrist": (40, 72, 3)}
    picture = env.render()
    assert picture.shape == (*PICTURE_SIZE, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10
    assert "fast" in env.renderer
    env.close()
    env.close()


def test_two_environments_do_not_draw_into_each_other():
    one, two = PitStopEnv(image_size=32), PitStopEnv(image_size=64)
    first, _ = one.reset(seed=0)
    two.reset(seed=1)
    again = one.pictures()
    np.testing.assert_array_equal(first["pixels"]["front"], again["front"])
    two.close()
    np.testing.assert_array_equal(first["pixels"]["front"], one.pictures()["front"])
    one.close()


def test_the_first_row_is_the_top():
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><camera name="c" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
        <geom type="box" size=".2 .2 .2" pos="0 0 .6" rgba="1 0 0 1"/>
        <geom type="box" size=".2 .2 .2" pos="0 0 -.6" rgba="0 0 1 1"/>
        </worldbody></mujoco>"""
    )
    tune_for_speed(model)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = CameraRenderer(model, "fast", (64, 64))
    picture = renderer.draw(data, ("c",), (64, 64))["c"].astype(int)
    renderer.close()
    assert picture[:32, :, 0].sum() > picture[:32, :, 2].sum() + 1000
    assert picture[32:, :, 2].sum() > picture[32:, :, 0].sum() + 1000


# Whoever uses weakref.finalize first decides when at exit all such functions run: before mujoco's own, or after it.
@pytest.mark.parametrize("before", ["", "import weakref; alive = {1}; weakref.finalize(alive, int); "])
def test_leaving_without_close_is_quiet(before):
    code = f"{before}from moe_envs.pitstop.env import PitStopEnv; env = PitStopEnv(image_size=16); env.reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
