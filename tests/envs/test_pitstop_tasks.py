"""Success, doing something else, the shuffled test, and the expert on every task."""

import dataclasses

import gymnasium
import numpy as np
import pytest

import moe_envs
from moe_envs.pitstop import tasks as rules
from moe_envs.pitstop.dimensions import BIN_XY, OBJECTS, PEG_XY
from moe_envs.pitstop.env import PitStopEnv
from moe_robot.types import Expert


@pytest.fixture(scope="module")
def table():
    return PitStopEnv(objects="all", cameras=())


@pytest.fixture(scope="module")
def joint_table():
    return PitStopEnv(objects="all", cameras=(), control="joint")


def rollout(env, task, seed, acting=None, noise=0.0, steps=100, **options):
    """The last ``info`` of an episode in which the expert of ``acting`` (else of ``task``) acts."""
    env.reset(seed=seed, options={"task": task, **options})
    expert, rng = env.make_expert(acting or task), np.random.default_rng(seed)
    for _ in range(steps):
        _, reward, terminated, _, info = env.step(expert.perturb(expert.act(), noise, rng))
        assert reward == float(info["success"])
        if terminated:
            break
    return info | {"terminated": terminated}


def moved(state, name, position, **changes):
    """``state`` with one object elsewhere."""
    thing = dataclasses.replace(state.objects[name], position=np.array(position, dtype=float))
    return dataclasses.replace(state, objects={**state.objects, name: thing}, **changes)


@pytest.mark.parametrize("task", rules.TASKS)
def test_the_expert_solves_every_task(table, task):
    for seed in (0, 1):
        info = rollout(table, task, seed)
        assert info["success"]
        assert info["is_success"]
        assert info["terminated"]
        assert not info["wrong"]


@pytest.mark.parametrize(
    "task", [*rules.DEMO_TASKS, "stack_blue_on_red", "nut_on_peg", "push_block", "bin_green_block_left"]
)
def test_the_expert_recovers_from_noise(table, task):
    assert sum(rollout(table, task, seed, noise=0.3)["success"] for seed in range(4)) >= 3


@pytest.mark.parametrize(
    "task", ["press_blue", "pick_yellow_wheel", "bin_red_cube_right", "stack_red_on_blue", "nut_on_peg", "push_block"]
)
def test_the_expert_works_in_joint_control(joint_table, task):
    assert rollout(joint_table, task, 3)["success"]


def test_the_expert_works_at_twenty_hertz():
    env = PitStopEnv(cameras=(), control_hz=20)
    for task in rules.DEMO_TASKS:
        assert rollout(env, task, 2, steps=60)["success"]


def test_demonstrations_of_the_demo_family_are_short():
    env = PitStopEnv(cameras=())
    for task in rules.DEMO_TASKS:
        for seed in range(3):
            assert rollout(env, task, seed, steps=20)["success"]


def test_the_expert_keeps_no_memory(table):
    assert isinstance(table.make_expert("nut_on_peg"), Expert)
    table.reset(seed=4, options={"task": "nut_on_peg"})
    old = table.make_expert("nut_on_peg")
    for _ in range(8):
        table.step(old.act())
    np.testing.assert_array_equal(old.act(), table.make_expert("nut_on_peg").act())
    np.testing.assert_array_equal(old.act(), old.act())


def test_labels_are_waypoints_that_stay_put_while_the_hand_travels(table):
    table.reset(seed=9, options={"task": "press_red"})
    expert, goals = table.make_expert("press_red"), []
    for _ in range(4):
        action = expert.act()
        goals.append(table.state().tool[:2] + 0.4 * action[:2])
        table.step(action)
    assert np.ptp(goals, axis=0).max() < 0.005
    np.testing.assert_allclose(goals[0], table.state().buttons["red"][:2], atol=0.005)


def test_noise_of_scale_zero_changes_nothing_and_else_shortens_first(table):
    table.reset(seed=9, options={"task": "press_red"})
    expert = table.make_expert("press_red")
    action, rng = expert.act(), np.random.default_rng(0)
    np.testing.assert_array_equal(expert.perturb(action, 0.0, rng), action)
    noisy = np.array([expert.perturb(action, 0.3, rng) for _ in range(3000)])
    reach = np.linalg.norm(noisy[:, :3].mean(axis=0)) * 0.4
    assert reach == pytest.approx(0.04, abs=0.001)
    np.testing.assert_allclose(noisy[:, :3].std(axis=0) * 0.4, 0.3 * 0.02, rtol=0.06)
    assert noisy[:, 3].std() * np.pi / 2 == pytest.approx(0.3 * 0.1, rel=0.06)
    assert np.all(noisy[:, 4] == action[4])


@pytest.mark.parametrize(
    ("task", "acting"),
    [
        ("press_red", "press_green"),
        ("press_red", "pick_red_cube"),
        ("pick_red_cube", "pick_blue_cube"),
        ("push_block", "pick_purple_nut"),
    ],
)
def test_doing_something_else_ends_the_episode_without_success(table, task, acting):
    info = rollout(table, task, 5, acting=acting)
    assert info["wrong"]
    assert info["terminated"]
    assert not info["success"]


def test_pressing_every_button_does_not_pay(table):
    wins = 0
    for seed in range(6):
        table.reset(seed=seed, options={"task": "press_blue"})
        over = False
        for colour in ("red", "green", "blue"):
            expert = table.make_expert(f"press_{colour}")
            for _ in range(15):
                if not over:
                    _, _, over, _, info = table.step(expert.act())
        wins += info["success"]
    assert wins == 0


def test_the_named_task_is_judged_beside_the_meant_one_and_neither_is_wrong(table):
    info = rollout(table, "press_red", 6, acting="pick_blue_cube", named_task="pick_blue_cube")
    assert (info["named_success"], info["success"], info["wrong"], info["terminated"]) == (True, False, False, True)
    assert info["task_name"] == "press_red"
    info = rollout(table, "press_red", 6, named_task="pick_blue_cube")
    assert (info["named_success"], info["success"], info["wrong"], info["terminated"]) == (False, True, False, True)
    info = rollout(table, "press_red", 6, acting="press_green", named_task="pick_blue_cube")
    assert (info["named_success"], info["success"], info["wrong"]) == (False, False, True)


def test_the_sentence_is_of_the_named_task(table):
    _, meant = table.reset(seed=8, options={"task": "press_red"})
    _, named = table.reset(seed=8, options={"task": "press_red", "named_task": "nut_on_peg"})
    _, alone = table.reset(seed=8, options={"task": "nut_on_peg"})
    assert named["task"] == alone["task"] != meant["task"]
    assert named["task_name"] == "press_red"


def test_every_reset_says_that_nothing_is_done_yet(table):
    for seed, task in enumerate(rules.TASKS):
        _, info = table.reset(seed=seed, options={"task": task})
        assert (info["success"], info["wrong"], info["named_success"]) == (False, False, False)


def test_nothing_moves_by_itself(table):
    for seed in (2, 15, 58):
        table.reset(seed=seed, options={"task": "press_red"})
        before = table.state()
        for _ in range(60):
            _, _, terminated, _, _ = table.step(np.array([0, 0, 0, 0, 1], dtype=np.float32))
            assert not terminated
        after = table.state()
        for name, thing in before.objects.items():
            assert np.linalg.norm(after.objects[name].position - thing.position) < 0.002


def test_success_thresholds_at_their_edges(table):
    table.reset(seed=0)
    state = table.state()
    rest = OBJECTS["red_cube"].height / 2
    pick = rules.TASKS["pick_red_cube"]
    high = [*state.tool[:2], rest + rules.PICK_LIFT + 1e-6]
    near_hand = {"tool": np.array(high)}
    assert rules.succeeded(pick, moved(state, "red_cube", high, **near_hand))
    assert not rules.succeeded(pick, moved(state, "red_cube", [*high[:2], high[2] - 2e-6], **near_hand))
    assert not rules.succeeded(pick, moved(state, "red_cube", high, tool=np.add(high, [0.05, 0, 0])))

    into = rules.TASKS["bin_red_cube_left"]
    x, y = BIN_XY["left"]
    assert rules.succeeded(into, moved(state, "red_cube", [x, y, rest]))
    assert not rules.succeeded(into, moved(state, "red_cube", [x, -y, rest]))
    assert not rules.succeeded(into, moved(state, "red_cube", [x, y, 0.06]))

    stack = rules.TASKS["stack_red_on_blue"]
    below = state.objects["blue_cube"].position
    on_top = np.add(below, [0.01, 0, 0.04])
    assert rules.succeeded(stack, moved(state, "red_cube", on_top, opening=0.08))
    assert not rules.succeeded(stack, moved(state, "red_cube", on_top, opening=0.04))
    assert not rules.succeeded(rules.TASKS["stack_blue_on_red"], moved(state, "red_cube", on_top, opening=0.08))

    peg = rules.TASKS["nut_on_peg"]
    assert rules.succeeded(peg, moved(state, "purple_nut", [*PEG_XY, 0.02]))
    assert not rules.succeeded(peg, moved(state, "purple_nut", [*PEG_XY, 0.05]))

    push = rules.TASKS["push_block"]
    y = state.objects["green_block"].position[1]
    assert rules.succeeded(push, moved(state, "green_block", [rules.LINE_REACHED + 1e-6, y, 0.018]))
    assert not rules.succeeded(push, moved(state, "green_block", [rules.LINE_REACHED + 1e-6, y, 0.1]))
    assert not rules.succeeded(push, moved(state, "green_block", [rules.LINE_REACHED - 1e-6, y, 0.018]))


def test_a_lifted_bystander_is_wrong_and_the_own_object_never(table):
    table.reset(seed=0)
    state = table.state()
    lifted = moved(state, "blue_cube", [0.5, 0, 0.02 + rules.WRONG_LIFT])
    assert rules.went_wrong(frozenset({"red_cube"}), lifted)
    assert not rules.went_wrong(frozenset({"blue_cube"}), lifted)
    pressed = dataclasses.replace(state, travel={**state.travel, "red": rules.PRESS_TRAVEL})
    assert rules.went_wrong(frozenset({"green button"}), pressed)
    assert not rules.went_wrong(frozenset({"red button"}), pressed)


def test_the_22_tasks_and_their_groups():
    assert len(rules.TASKS) == 22
    assert rules.TASK_GROUPS["demo"] == ("press_red", "press_green", "press_blue", "pick_red_cube", "pick_blue_cube")
    assert set(rules.TASK_GROUPS["all"]) == set(rules.TASKS)
    known, new = (set(rules.TASK_GROUPS[name]) for name in ("combos", "newcombos"))
    assert not known & new
    assert known | new == set(rules.TASKS)
    for part in ("verb", "subject", "place"):  # only their combination is new
        assert {getattr(rules.TASKS[name], part) for name in new} <= {
            getattr(rules.TASKS[name], part) for name in known
        }


def test_success_through_gymnasiums_wrappers_terminates_and_is_not_truncated():
    moe_envs.register()
    env = gymnasium.make("moe_robot/PitStop-v0", cameras=())
    env.reset(seed=0, options={"task": "press_green"})
    expert = env.unwrapped.make_expert("press_green")
    for _ in range(20):
        _, reward, terminated, truncated, _ = env.step(expert.act())
        if terminated:
            break
    assert (reward, terminated, truncated) == (1.0, True, False)
