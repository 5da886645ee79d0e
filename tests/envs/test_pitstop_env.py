"""PitStop as a Gymnasium environment: spaces, seeds, time limit, vector environments, bad input."""

import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import moe_envs
from moe_envs.pitstop import control
from moe_envs.pitstop.dimensions import BUTTONS, OBJECTS, SCENE_OBJECTS
from moe_envs.pitstop.env import PitStopEnv
from moe_envs.pitstop.layout import BEHIND_BLOCK, CORRIDOR, SPACING, draw_layout
from moe_robot.types import UserError

HOLD = np.array([0, 0, 0, 0, 1], dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def registered():
    moe_envs.register()


@pytest.fixture(scope="module")
def demo():
    env = PitStopEnv()
    yield env
    env.close()


@pytest.fixture(scope="module")
def blind():
    """All things on the table, no cameras: physics only, so quick."""
    return PitStopEnv(objects="all", cameras=())


def places(env):
    state = env.state()
    return np.concatenate([*(t.position for t in state.objects.values()), *state.buttons.values(), state.tool])


@pytest.mark.parametrize(
    "options", [{}, {"objects": "all", "control": "joint", "image_size": (48, 64), "cameras": ("wrist",)}]
)
def test_gymnasiums_checker_finds_nothing_to_warn_about(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("moe_robot/PitStop-v0", render_mode="rgb_array", **options)
        check_env(env.unwrapped, skip_render_check=True)
        env.close()


def test_observations_have_the_names_and_sizes_that_are_promised(demo):
    observation, info = demo.reset(seed=1)
    assert set(observation["pixels"]) == {"front", "wrist"}
    assert all(p.shape == (96, 96, 3) and p.dtype == np.uint8 for p in observation["pixels"].values())
    named = dict(zip(demo.state_names, observation["agent_pos"], strict=True))
    state = demo.state()
    np.testing.assert_allclose([named["hand.x"], named["hand.y"], named["hand.z"]], state.tool, atol=1e-6)
    assert named["hand.yaw"] == pytest.approx(state.yaw, abs=1e-6)
    assert named["gripper.opening"] == pytest.approx(0.08, abs=1e-6)
    np.testing.assert_allclose([named[f"joint{i}.pos"] for i in range(1, 8)], demo.joint_positions(), atol=1e-6)
    assert info["task"] == demo.task_description
    assert {"task_name", "success", "is_success", "wrong", "named_success"} <= set(info)


def test_same_seed_and_actions_give_the_same_bits():
    runs = []
    for _ in range(2):
        env, rng = PitStopEnv(objects="all"), np.random.default_rng(0)
        observation, info = env.reset(seed=11, options={"task": "stack_red_on_blue"})
        trace = [observation["agent_pos"].tobytes(), info["task"]]
        for _ in range(15):
            observation, *_ = env.step(rng.uniform(-1, 1, 5))
            trace += [
                observation["agent_pos"].tobytes(),
                env.data.qpos.tobytes(),
                observation["pixels"]["wrist"].tobytes(),
            ]
        runs.append(trace)
        env.close()
    assert runs[0] == runs[1]


def test_an_episode_does_not_depend_on_the_one_before(blind):
    blind.reset(seed=5, options={"task": "nut_on_peg"})
    fresh = [blind.step(HOLD)[0]["agent_pos"] for _ in range(3)]
    blind.reset(seed=6)
    for _ in range(4):
        blind.step(blind.action_space.sample())
    blind.reset(seed=5, options={"task": "nut_on_peg"})
    np.testing.assert_array_equal(fresh, [blind.step(HOLD)[0]["agent_pos"] for _ in range(3)])


def test_looks_do_not_change_the_physics():
    traces = []
    for quality in ("fast", "full"):
        env = PitStopEnv(render=quality, cameras=())
        env.reset(seed=3, options={"task": "pick_red_cube"})
        expert = env.make_expert("pick_red_cube")
        for _ in range(8):
            env.step(expert.act())
        traces.append(env.data.qpos.copy())
    np.testing.assert_array_equal(*traces)


def test_layout_does_not_depend_on_the_task_and_the_sentence_does_not_change_it(blind):
    layouts = set()
    for task in ("press_red", "push_block", "bin_yellow_wheel_left"):
        for instructions in ("seen", "heldout"):
            blind.reset(seed=21, options={"task": task, "instructions": instructions})
            layouts.add(places(blind).tobytes())
    blind.reset(seed=21)
    layouts.add(places(blind).tobytes())
    assert len(layouts) == 1


def test_without_a_task_all_tasks_come_up_and_seeds_decide(blind):
    drawn = [blind.reset(seed=seed)[1]["task_name"] for seed in range(120)]
    assert drawn == [blind.reset(seed=seed)[1]["task_name"] for seed in range(120)]
    assert len(set(drawn)) > 18


@pytest.mark.parametrize("scene", ["demo", "all"])
def test_layouts_leave_room_for_the_open_hand(scene):
    for seed in range(60):
        layout = draw_layout(scene, np.random.default_rng(seed))
        spots = {
            **{n: p[:2] for n, p in layout.objects.items()},
            **{f"{n} button": p for n, p in layout.buttons.items()},
        }
        assert len(spots) == len(SCENE_OBJECTS[scene]) + len(BUTTONS)
        points = np.array(list(spots.values()))
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2)[~np.eye(len(points), dtype=bool)]
        assert gaps.min() >= SPACING[scene] >= 0.105
        if scene == "all":
            x, y = spots["green_block"]
            for name, (a, b) in spots.items():
                if name != "green_block" and a > x - BEHIND_BLOCK:
                    assert abs(b - y) >= CORRIDOR["button" if "button" in name else "object"]


@pytest.mark.parametrize("hz", [10, 20])
def test_episodes_are_cut_after_ten_seconds_at_either_rate(hz):
    env = gymnasium.make("moe_robot/PitStop-v0", control_hz=hz, cameras=())
    env.reset(seed=0)
    for step in range(1, 10 * hz + 1):
        _, _, terminated, truncated, _ = env.step(HOLD)
        assert (terminated, truncated) == (False, step == 10 * hz)
    assert env.unwrapped.metadata["render_fps"] == env.unwrapped.control_hz == hz
    assert env.unwrapped.data.time == pytest.approx(10.0)


def test_vector_environments_agree_with_a_single_one():
    make = [lambda: gymnasium.make("moe_robot/PitStop-v0", image_size=32)] * 2
    actions = np.stack([HOLD, -HOLD])
    seen = []
    for vector in (gymnasium.vector.SyncVectorEnv(make), gymnasium.vector.AsyncVectorEnv(make)):
        first, infos = vector.reset(seed=[7, 8])
        second, *_ = vector.step(actions)
        seen.append((first, second, list(infos["task"])))
        vector.close()
    single = make[0]()
    alone, info = single.reset(seed=8)
    single.close()
    for first, second, sentences in seen:
        np.testing.assert_array_equal(first["agent_pos"][1], alone["agent_pos"])
        np.testing.assert_array_equal(first["pixels"]["front"][1], alone["pixels"]["front"])
        np.testing.assert_array_equal(second["agent_pos"], seen[0][1]["agent_pos"])
        assert sentences[1] == info["task"]
        assert (first["pixels"]["front"][0] != first["pixels"]["front"][1]).any()


def test_an_environment_travels_through_pickle_and_goes_on(demo):
    demo.reset(seed=2)
    copy = pickle.loads(pickle.dumps(demo))
    (ours, *_), (theirs, *_) = demo.step(HOLD), copy.step(HOLD)
    np.testing.assert_array_equal(ours["agent_pos"], theirs["agent_pos"])
    np.testing.assert_array_equal(ours["pixels"]["front"], theirs["pixels"]["front"])
    copy.close()
    copy.close()


def test_making_and_resetting_without_cameras_touches_no_gl():
    code = (
        "import gymnasium, moe_envs; env = gymnasium.make('moe_robot/PitStop-v0', cameras=()); env.reset(seed=0)\n"
        "import sys; assert not any(name.startswith(('OpenGL', 'mujoco.egl')) for name in sys.modules)"
    )
    clean = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["egl", ""])
def test_a_machine_without_gl_is_told_in_one_line_what_to_install(backend):
    code = """
import ctypes
class Missing(ctypes.CDLL):
    def __init__(self, name, *rest, **options):
        if "EGL" in str(name):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *rest, **options)
ctypes.CDLL = ctypes.cdll._dlltype = Missing
from moe_robot.registry import make_environment
from moe_robot.types import UserError
try:
    make_environment("pitstop").reset(seed=0)
except UserError as error:
    print(error)
"""
    environment = {"PATH": "/usr/bin:/bin", "MUJOCO_GL": backend}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert len(done.stdout.splitlines()) == 1, done.stderr
    assert "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objects": "dmeo"}, "did you mean demo"),
        ({"control": "cartesain"}, "did you mean cartesian"),
        ({"control_hz": 15}, "choose from 10 or 20"),
        ({"image_size": 4}, "expected 8 to 2048"),
        ({"cameras": ("front", "wirst")}, "did you mean wrist"),
        ({"render": "ful"}, "did you mean full"),
        ({"render_mode": "rgb"}, "did you mean rgb_array"),
    ],
)
def test_options_that_are_not_offered_are_refused_with_the_ones_that_are(options, said):
    with pytest.raises(UserError, match=said):
        PitStopEnv(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "press_rde"}, "did you mean press_red"),
        ({"task": "nut_on_peg"}, "make the environment with objects='all'"),
        ({"instructions": "sene"}, "did you mean seen"),
        ({"named_task": "pick_red_cub"}, "did you mean pick_red_cube"),
        ({"tsak": "press_red"}, "did you mean task"),
    ],
)
def test_reset_options_that_make_no_sense_are_refused(demo, options, said):
    with pytest.raises(UserError, match=said):
        demo.reset(seed=0, options=options)


def test_a_missing_robot_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MENAGERIE_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=r"has no franka_emika_panda/panda\.xml: correct it or unset it"):
        PitStopEnv()


def test_names_match_the_spaces(blind):
    joint = PitStopEnv(control="joint", cameras=())
    assert blind.action_names == control.CARTESIAN_NAMES
    assert len(blind.action_names) == blind.action_space.shape[0] == 5
    assert len(joint.action_names) == joint.action_space.shape[0] == 8
    assert len(blind.state_names) == blind.observation_space["agent_pos"].shape[0] == 19
    assert len(blind.tasks) == 22
    assert set(joint.tasks) == set(joint.task_groups["demo"])
    assert set(blind.state().objects) == set(OBJECTS)
