"""Meta-World behind our door: what it does by itself that would spoil a result, and that it does not do here."""

import pickle
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import moe_envs
from moe_envs.metaworld import expert as expert_module
from moe_envs.metaworld.drawing import CORNER2_POSITION, drawn_model
from moe_envs.metaworld.env import KEPT_WORLDS, MetaWorldEnv
from moe_envs.metaworld.grips import Grip, hold_on
from moe_envs.metaworld.tasks import MT10, MT50, SENTENCES, TASK_GROUPS, TIERS
from moe_envs.metaworld.world import GOAL, HAND, OBJECT, STEP_LIMIT, World, require
from moe_robot.registry import environment_features, make_environment, select_tasks
from moe_robot.types import UserError

SLICES = 5


def blind(**options):
    return MetaWorldEnv(cameras=(), **options)


def everything(env):
    """All that decides how the scene goes on, and what the expert is told."""
    world = env._world()
    data = world.sawyer.data
    return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel(), world.seen])


def play(env, task, seed, steps=STEP_LIMIT):
    env.reset(seed=seed, options={"task": task})
    expert, terminated, info = env.make_expert(task), False, {}
    for _ in range(steps):
        _, _, terminated, _, info = env.step(expert.act())
        if terminated:
            break
    return terminated, info


def test_it_is_a_gymnasium_environment():
    env = MetaWorldEnv(task="reach-v3", image_size=32)
    check_env(env, skip_render_check=True)
    env.close()


def test_the_features_are_four_numbers_and_the_pictures():
    env = make_environment("metaworld", task="reach-v3", control_hz=40, image_size=(64, 96))
    features = environment_features(env)
    env.close()
    assert features.state_names == ("hand.x", "hand.y", "hand.z", "gripper.opening")
    assert features.cameras == {"corner2": (64, 96)}
    assert features.fps == 40
    assert len(features.action_names) == 4
    assert len(features.environment_names) == 3 * 3 + 3 * 2


def test_groups_are_those_of_the_literature():
    assert [len(TIERS[tier]) for tier in ("easy", "medium", "hard", "very_hard")] == [28, 11, 6, 5]
    assert len(MT50) == len(set(MT50)) == len(set(SENTENCES.values())) == 50
    assert set(MT10) < set(MT50) == set(require().policies.ENV_POLICY_MAP)
    env = blind()
    assert select_tasks(env, "mt10") == MT10
    assert set(select_tasks(env, "hard,very_hard")) == {*TASK_GROUPS["hard"], *TASK_GROUPS["very_hard"]}


@pytest.mark.parametrize("part", range(SLICES))
def test_in_every_task_a_seed_decides_the_layout_whatever_was_played_before(part):
    for task in MT50[part::SLICES]:
        env = blind(task=task)
        env.reset(seed=7)
        first = everything(env)
        for _ in range(5):
            env.step(np.array([0.3, -1.0, 0.7, 1.0]))
        env.reset()
        assert not np.array_equal(everything(env), first), f"{task}: a reset without a seed repeats the layout"
        second = everything(env)
        env.reset(seed=7)
        np.testing.assert_array_equal(everything(env), first, err_msg=task)
        env.reset()
        np.testing.assert_array_equal(everything(env), second, err_msg=task)
        fresh = blind(task=task)
        fresh.reset(seed=7)
        np.testing.assert_array_equal(everything(fresh), first, err_msg=task)


def test_layouts_do_not_come_from_numpys_global_generator():
    env = blind(task="push-v3")
    np.random.seed(0)
    env.reset(seed=3)
    first = everything(env)
    np.random.seed(1)
    env.reset(seed=3)
    np.testing.assert_array_equal(everything(env), first)


@pytest.mark.parametrize("part", range(SLICES))
def test_the_expert_is_told_the_goal_and_reaches_it(part):
    """A goal clipped to zero would leave assembly, box-close, peg-insert-side and others at no success at all."""
    failed = []
    for task in MT50[part::SLICES]:
        env = blind(task=task)
        env.reset(seed=0)
        env.step(np.zeros(4))
        np.testing.assert_array_equal(env._world().seen[GOAL], env._world().sawyer._target_pos, err_msg=task)
        done = [play(env, task, seed)[0] for seed in (0, 1)]
        failed += [task] if not any(done) else []
    assert not failed


def test_nothing_that_a_robot_cannot_know_is_observed():
    env = MetaWorldEnv(task="push-v3", image_size=32)
    env.reset(seed=0)
    world = env._world()
    before = env._observe()
    hidden = np.ones(39, bool)
    hidden[HAND] = False
    world.seen[hidden] = np.random.default_rng(0).normal(size=hidden.sum())
    after = env._observe()
    env.close()
    np.testing.assert_array_equal(after["agent_pos"], before["agent_pos"])
    np.testing.assert_array_equal(after["pixels"]["corner2"], before["pixels"]["corner2"])
    assert before["agent_pos"].shape == (4,)


@pytest.mark.filterwarnings("ignore:Constant")
def test_labels_are_clipped_and_clipping_changes_nothing():
    task = "button-press-topdown-v3"
    env, stock = blind(task=task), blind(task=task)
    for each in (env, stock):
        each.reset(seed=0)
    expert, beyond = env.make_expert(task), 0.0
    for _ in range(30):
        raw = expert._policy.get_action(stock._world().seen)
        beyond = max(beyond, float(np.abs(raw).max()))
        label = expert.act()
        assert np.abs(label).max() <= 1
        env.step(label)
        stock._world().step(raw)
        np.testing.assert_array_equal(everything(env), everything(stock))
    assert beyond > 1


def test_the_peg_is_lifted_as_soon_as_it_is_held():
    """Meta-World's own expert presses on with the peg in its fingers, on these two seeds for 65 steps."""
    env = blind(control_hz=40)
    for seed in (301, 305):
        observation, _ = env.reset(seed=seed, options={"task": "peg-insert-side-v3"})
        expert, rng, pressing, terminated = env.make_expert("peg-insert-side-v3"), np.random.default_rng(0), 0, False
        for _ in range(120):
            action = expert.act()
            height, opening = observation["agent_pos"][2:4]
            pressing += bool(opening < 0.4 and height < 0.06 and action[2] < 0)
            observation, _, terminated, _, _ = env.step(expert.perturb(action, 0.3, rng))
            if terminated:
                break
        assert terminated
        assert pressing <= 8


def lifts_until_done(task, seed):
    """How often the expert begins to go up with closing fingers."""
    env = blind(control_hz=40, task=task)
    env.reset(seed=seed)
    expert, terminated, rising, lifts = env.make_expert(task), False, False, 0
    while not terminated:
        action = expert.act()
        before, rising = rising, bool(action[3] > 0 and action[2] > 0.3)
        lifts += rising and not before
        _, _, terminated, _, _ = env.step(action)
    return lifts


@pytest.mark.parametrize("task", ["bin-picking-v3", "disassemble-v3"])
def test_who_waits_for_the_fingers_lifts_once_and_meta_worlds_own_experts_do_not(task, monkeypatch):
    assert [lifts_until_done(task, seed) for seed in range(3)] == [1, 1, 1]
    monkeypatch.setattr(expert_module, "GRIPS", {})
    assert all(lifts_until_done(task, seed) > 1 for seed in range(3))


def succeeds_after_closing_on_nothing(task, seed):
    """Whether the expert still does the task once somebody closed the fingers and brought them over the object."""
    env = blind(control_hz=40, task=task)
    env.reset(seed=seed)
    expert = env.make_expert(task)
    for step in range(STEP_LIMIT // 2):
        action = expert.act()
        if step < 30:
            action[3] = 1.0
        _, _, terminated, _, _ = env.step(action)
        if terminated:
            return True
    return False


@pytest.mark.parametrize("task", ["push-v3", "pick-place-v3", "hammer-v3", "hand-insert-v3"])
def test_fingers_that_closed_on_nothing_are_opened_again_and_meta_worlds_own_experts_press_for_ever(task, monkeypatch):
    assert all(succeeds_after_closing_on_nothing(task, seed) for seed in range(3))
    monkeypatch.setattr(expert_module, "GRIPS", {})
    assert not any(succeeds_after_closing_on_nothing(task, seed) for seed in range(3))


@pytest.mark.parametrize(
    ("above", "aside", "opening", "expected"),
    [
        (0.20, 0.00, 0.3, (0.5, -1.0, -1.0)),  # opens on its way down
        (0.20, 0.20, 0.3, (0.5, -1.0, -1.0)),  # and on its way there
        (0.20, 0.20, 1.0, (0.5, -1.0, 0.6)),  # what it does with open fingers far away is its own affair
        (0.10, 0.00, 0.3, (0.5, 0.0, -1.0)),  # waits above the object until they are open
        (0.06, 0.00, 0.3, (0.5, 0.6, -1.0)),  # makes room for that
        (0.04, 0.00, 1.0, (0.0, -1.0, 0.6)),  # closes before it goes anywhere
        (0.04, 0.00, 0.5, (0.5, -1.0, 0.6)),  # and then goes
    ],
)
def test_when_fingers_open_and_close(above, aside, opening, expected):
    seen, action = np.zeros(39), np.array([0.5, 0.0, -1.0, 0.6])
    seen[HAND] = aside, 0.6, above, opening
    seen[OBJECT] = 0.0, 0.6, 0.0
    hold_on(Grip(0.05), seen, action)
    assert (action[0], *action[2:]) == expected


@pytest.mark.parametrize(
    ("above", "beside", "opening", "expected"),
    [
        (0.04, 0.02, 1.0, (-0.5, 0.0, -1.0)),  # over the middle of the object first
        (0.04, 0.02, 0.7, (0.0, -1.0, 0.6)),  # where the fingers have begun to close, there they close
        (0.04, 0.01, 1.0, (0.0, -1.0, 0.6)),  # near enough
        (0.01, 0.00, 0.4, (0.0, 0.6, -1.0)),  # too low: let go, and up
    ],
)
def test_fingers_close_over_the_middle_and_not_too_low(above, beside, opening, expected):
    seen, action = np.zeros(39), np.array([0.5, 0.0, -1.0, 0.6])
    seen[HAND] = beside + 0.01, 0.6, above, opening
    seen[OBJECT] = 0.0, 0.6, 0.0
    hold_on(Grip(0.05, ahead=0.01, centred=0.012, floor=0.02), seen, action)
    np.testing.assert_allclose((action[0], *action[2:]), expected)


def steps_after_a_push(task, seed, push):
    """Control steps until the task is done where something drags the hand aside for 40 of them."""
    env = blind(control_hz=40, task=task)
    env.reset(seed=seed)
    expert = env.make_expert(task)
    for step in range(STEP_LIMIT // 2):
        action = expert.act()
        action[0] += push * (step < 40)
        if env.step(np.clip(action, -1, 1))[2]:
            return step + 1
    return STEP_LIMIT // 2


def test_a_ball_that_is_taken_in_the_middle_is_not_lost_and_meta_worlds_own_expert_loses_it(monkeypatch):
    assert max(steps_after_a_push("basketball-v3", seed, -0.6) for seed in (1, 3, 4)) < 80
    monkeypatch.setitem(expert_module.GRIPS, "basketball-v3", Grip(0.057, 0.8))
    assert min(steps_after_a_push("basketball-v3", seed, -0.6) for seed in (1, 3, 4)) > 90


@pytest.mark.parametrize(
    ("table", "task", "seeds", "ours"),
    [
        ("OURS", "handle-pull-side-v3", (2, 3, 4), 45),
        ("OURS", "lever-pull-v3", (0, 1, 2), 36),
        ("LEVEL", "stick-pull-v3", (4, 5, 7), 90),
    ],
)
def test_undisturbed_experts_of_ours_are_done_sooner_than_meta_worlds_own(table, task, seeds, ours, monkeypatch):
    assert max(steps_after_a_push(task, seed, 0.0) for seed in seeds) < ours
    monkeypatch.setattr(expert_module, table, {})
    assert min(steps_after_a_push(task, seed, 0.0) for seed in seeds) > ours


@pytest.mark.parametrize("task", ["handle-pull-side-v3", "lever-pull-v3"])
def test_experts_of_ours_go_on_from_wherever_the_hand_was_dragged_to(task):
    assert all(steps_after_a_push(task, seed, push) < 130 for seed in range(3) for push in (-0.7, 0.7))


def test_a_ring_between_the_fingers_is_told_to_be_where_they_can_lift_it():
    expert = expert_module.MetaWorldExpert("disassemble-v3", lambda: None)
    seen = np.zeros(39)
    seen[HAND], seen[OBJECT] = (0.01, 0.6, 0.04, 0.5), (0.0, 0.6, 0.0)
    np.testing.assert_allclose(expert._told(seen)[OBJECT], (0.03, 0.6, 0.0))
    seen[HAND.stop - 1] = 1.0
    np.testing.assert_array_equal(expert._told(seen), seen)


def test_the_ball_is_brought_to_the_goal_where_meta_worlds_own_expert_kicks_it(monkeypatch):
    def ball_at_hand_when_done(seed):
        env = blind(control_hz=40, task="soccer-v3")
        assert play(env, "soccer-v3", seed, STEP_LIMIT // 2)[0]
        seen = env._world().seen
        return bool(np.linalg.norm(seen[HAND][:2] - seen[OBJECT][:2]) < 0.03)

    assert all(ball_at_hand_when_done(seed) for seed in (0, 1, 3))
    monkeypatch.setattr(expert_module, "STAND_INS", {})
    monkeypatch.setattr(expert_module, "GRIPS", {})
    assert not any(ball_at_hand_when_done(seed) for seed in (0, 1, 3))


def test_disturbances_leave_the_gripper_and_stay_in_range():
    env = blind(task="reach-v3")
    expert = env.make_expert("reach-v3")
    rng, clean = np.random.default_rng(0), np.array([0.9, -0.9, 0.0, 0.4], np.float32)
    np.testing.assert_array_equal(expert.perturb(clean, 0.0, rng), clean)
    disturbed = np.array([expert.perturb(clean, 0.5, rng) for _ in range(200)])
    assert np.all(disturbed[:, 3] == clean[3])
    assert np.abs(disturbed).max() <= 1
    assert disturbed[:, 2].std() == pytest.approx(0.5, rel=0.2)


def test_success_ends_the_episode_and_time_is_500_steps_at_any_rate():
    env = make_environment("metaworld", task="button-press-topdown-v3", cameras=())
    terminated, info = play(env.unwrapped, "button-press-topdown-v3", 0)
    assert terminated
    assert info["success"] is info["is_success"] is info["named_success"] is True
    for hz in (80, 40, 20):
        slow = make_environment("metaworld", task="reach-v3", control_hz=hz, cameras=())
        slow.reset(seed=0)
        steps, truncated = 0, False
        while not truncated:
            _, _, terminated, truncated, _ = slow.step(np.array([-1.0, -1.0, 1.0, 0.0]))
            assert not terminated
            steps += 1
        assert steps == STEP_LIMIT * hz / 80
        assert slow.unwrapped._world().sawyer.curr_path_length == STEP_LIMIT


def test_an_action_is_held_for_as_many_steps_as_the_rate_says():
    fast, slow = blind(task="reach-v3"), blind(task="reach-v3", control_hz=20)
    for env in (fast, slow):
        env.reset(seed=2)
    action = np.array([1.0, 0.5, -0.5, 1.0])
    slow.step(action)
    for _ in range(4):
        fast.step(action)
    np.testing.assert_array_equal(everything(slow), everything(fast))


def test_another_sentence_is_followed_by_nobody():
    env = blind()
    _, info = env.reset(seed=0, options={"task": "button-press-topdown-v3", "named_task": "reach-v3"})
    assert info["task"] == SENTENCES["reach-v3"]
    expert, done = env.make_expert("button-press-topdown-v3"), False
    while not done:
        _, _, done, _, info = env.step(expert.act())
    assert info["success"]
    assert not info["named_success"]


@pytest.mark.parametrize("quality", ["fast", "full"])
def test_cameras_stand_where_papers_put_them_and_upright(quality):
    model = drawn_model(World("reach-v3").file, quality)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert tuple(model.camera("corner2").pos) == CORNER2_POSITION
    for name in ("corner", "corner2", "corner3", "corner4", "close"):
        up = data.camera(name).xmat.reshape(3, 3)[:, 1]
        assert up[2] > 0.3, f"{name} is upside down"


def test_the_picture_shows_the_goal_and_the_hand_where_they_are():
    """The pinhole model is the oracle for the poses that the drawing takes over from the physics."""
    env = MetaWorldEnv(task="push-v3", image_size=192, cameras=("corner2", "close"))
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(10):
            observation = env.step(np.array([-0.5, -1.0, 0.5, 1.0]))[0]
        drawing = env._drawing()
        for camera in env.cameras:
            eye = drawing.data.camera(camera).xpos
            axes = drawing.data.camera(camera).xmat.reshape(3, 3)
            x, y, z = axes.T @ (env._world().sawyer._target_pos - eye)
            focal = 96 / np.tan(np.radians(drawing.model.camera(camera).fovy[0]) / 2)
            row, column = int(96 + focal * y / z), int(96 - focal * x / z)
            around = observation["pixels"][camera][row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3)
            assert any(green > 1.5 * max(red, blue) for red, green, blue in around.astype(float)), (seed, camera)
    env.close()


def test_fast_and_full_pictures_are_alike():
    pictures = {}
    for quality in ("fast", "full"):
        env = MetaWorldEnv(task="drawer-open-v3", render=quality, image_size=64)
        pictures[quality] = env.reset(seed=1)[0]["pixels"]["corner2"].astype(float)
        assert env.renderer.startswith(quality)
        env.close()
    difference = np.abs(pictures["fast"] - pictures["full"]).mean()
    assert 0 < difference < 12, "shadows and the arm's corners are all that differ"


def test_the_physics_does_not_know_of_the_drawing():
    seen, unseen = MetaWorldEnv(task="drawer-open-v3", image_size=32), blind(task="drawer-open-v3")
    assert play(seen, "drawer-open-v3", 3)[0]
    assert play(unseen, "drawer-open-v3", 3)[0]
    np.testing.assert_array_equal(everything(seen), everything(unseen))
    seen.close()


def test_scenes_make_room_for_others():
    env = MetaWorldEnv(image_size=16)
    for task in MT50[: KEPT_WORLDS + 3]:
        env.reset(seed=0, options={"task": task})
    assert len(env._worlds) == KEPT_WORLDS
    assert len(env._drawings) == KEPT_WORLDS
    assert MT50[0] not in env._worlds
    env.close()
    env.close()


def test_a_copy_plays_after_a_reset():
    env = blind(task="push-v3")
    env.reset(seed=4)
    copy = pickle.loads(pickle.dumps(env))
    with pytest.raises(UserError, match="reset"):
        copy.step(np.zeros(4))
    copy.reset(seed=4)
    np.testing.assert_array_equal(everything(copy), everything(env))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "pick-plase-v3"}, "did you mean pick-place-v3"),
        ({"cameras": ("corner9",)}, "camera"),
        ({"render": "nice"}, "unknown render 'nice'"),
        ({"control_hz": 30}, "choose from 80, 40, 20"),
        ({"image_size": 4}, "8 to 2048"),
    ],
)
def test_options_that_are_not_offered_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MetaWorldEnv(**options)


def test_unknown_reset_options_are_refused():
    env = blind(task="reach-v3")
    with pytest.raises(UserError, match="did you mean reach-wall-v3"):
        env.reset(options={"task": "reach-wal-v3"})
    with pytest.raises(UserError, match="reset option"):
        env.reset(options={"tusk": "reach-v3"})


def test_a_missing_package_is_one_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(UserError, match=r"moe-robot\[metaworld\]") as error:
        MetaWorldEnv()
    assert "\n" not in str(error.value)


def test_another_mujoco_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(mujoco, "__version__", "3.17.0")
    with pytest.raises(UserError, match=r"expected 3\.3\.0"):
        MetaWorldEnv()


def test_it_is_registered_beside_pitstop():
    moe_envs.register()
    assert moe_envs.METAWORLD in gymnasium.registry
