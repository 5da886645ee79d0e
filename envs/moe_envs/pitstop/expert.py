"""The scripted expert: every task solved by a function of the present state, without phases or memory.

It answers with a waypoint, often far ahead, that moves little while the hand travels: straight over the subject, at a
height that falls as the horizontal error falls (a funnel). What has been achieved is read off the world: an object
between fingers that are no farther apart than it is wide counts as held.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from moe_envs.pitstop import control
from moe_envs.pitstop.dimensions import (
    BIN_WALL_HEIGHT,
    BIN_XY,
    BLOCK_LENGTH,
    BUTTON_TOP,
    LINE_X,
    MAX_OPENING,
    OBJECTS,
    PEG_HEIGHT,
    PEG_XY,
)
from moe_envs.pitstop.tasks import TASKS, Task, Thing, WorldState
from moe_robot.kinematics import SerialChain, wrap_angle

HOVER = 0.10  # the funnel's rim over its bottom
FUNNEL_SLOPE, FUNNEL_FLOOR = 1.6, 0.006  # height per horizontal error beyond the floor
LAG = 0.05  # this far below the funnel the hand goes straight up first, so that it drags nothing along
LIFT_TO = 0.20
PRESS_DEPTH = 0.014
PUSH_HEIGHT = 0.024
NEAR_XY, NEAR_Z, NEAR_YAW = 0.012, 0.020, 0.30  # where the fingers begin to close ...
KEEP_XY, KEEP_Z = 0.020, 0.026  # ... and how far it may slip before they open again once they are closing
BEGUN = 0.85 * MAX_OPENING  # an opening below this says that closing has begun
HELD_SLACK = 0.005  # fingers up to this much farther apart than the object is wide hold it ...
SOMETHING = 0.015  # ... down to this; closer, there is nothing between them worth lifting
OPEN, CLOSED = 1.0, -1.0
UP = np.array([0.0, 0.0, 1.0])
NOISE_POSITION, NOISE_YAW = 0.02, 0.1  # one control step's travel at 20 Hz: the unit of ``perturb``


class World(Protocol):
    """What the expert reads of its environment."""

    control: str
    control_hz: int
    chain: SerialChain

    def state(self) -> WorldState:
        """The privileged state."""
        ...

    def joint_positions(self) -> np.ndarray:
        """(7,) measured, rad."""
        ...


class PitStopExpert:
    """Teacher of one task in one environment. Actions are in the environment's own control mode."""

    def __init__(self, env: World, task: str) -> None:
        self._env = env
        self._task = TASKS[task]

    def act(self) -> np.ndarray:
        """The clean action for the environment's present state: cartesian (5,) or joint (8,), float32."""
        state = self._env.state()
        action = waypoint(self._task, state)
        if self._env.control == "joint":
            action = control.joint_action(self._env.chain, self._env.joint_positions(), action)
        return action.astype(np.float32)

    def perturb(self, action: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
        """``action`` shortened to one control step, plus gaussian noise of ``scale`` times (2 cm, 0.1 rad).

        The gripper is left alone. In joint control the noise is that of the hand, carried to the joints. A scale of 0
        returns the action unchanged.
        """
        if scale == 0:
            return action
        mode = self._env.control
        noisy = control.shorten(action, mode, 1.0 / self._env.control_hz)
        push = scale * NOISE_POSITION * rng.standard_normal(3)
        turn = scale * NOISE_YAW * float(rng.standard_normal())
        if mode == "joint":
            twist = np.concatenate([push, [0.0, 0.0, turn]])
            noisy[:7] += self._env.chain.step(self._env.joint_positions(), twist) / control.JOINT_UNIT
        else:
            noisy[:3] += push / control.POSITION_UNIT
            noisy[3] += turn / control.YAW_UNIT
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)


def waypoint(task: Task, state: WorldState) -> np.ndarray:
    """The cartesian action (5,) for ``task`` in ``state``: where the hand should go from here, clipped to the box."""
    if task.verb == "press":
        return _press(task, state)
    if task.verb == "push":
        return _push(task, state)
    thing, shape = state.objects[task.subject], OBJECTS[task.subject]
    if task.verb != "pick" and _delivered(task, state):
        return _to(state, state.tool + UP * 0.03, state.yaw, OPEN)
    fitting = SOMETHING <= state.opening <= shape.width + HELD_SLACK  # less than its width where it has tumbled
    if not (fitting and _between_fingers(state, thing)):
        return _grasp(task.subject, state)
    if task.verb == "pick":
        return _to(state, np.array([*state.tool[:2], LIFT_TO]), state.yaw, CLOSED)
    return _carry(task, state)


def _press(task: Task, state: WorldState) -> np.ndarray:
    button = state.buttons[task.subject]
    return _through_funnel(state, button[:2], BUTTON_TOP - PRESS_DEPTH, 0.0, CLOSED)


def _grasp(name: str, state: WorldState) -> np.ndarray:
    thing, shape = state.objects[name], OBJECTS[name]
    yaw = wrap_angle(thing.yaw, shape.symmetry) if shape.symmetry else 0.0
    height = float(thing.position[2]) + shape.grasp_height - shape.height / 2
    closing = state.opening < BEGUN
    xy, z = (KEEP_XY, KEEP_Z) if closing else (NEAR_XY, NEAR_Z)
    error = state.tool - (*thing.position[:2], height)
    near = math.hypot(error[0], error[1]) < xy and abs(error[2]) < z
    overclosed = state.opening < SOMETHING  # on nothing, or on the nut's rim: open and try again
    aligned = not shape.symmetry or abs(wrap_angle(yaw - state.yaw, shape.symmetry)) < NEAR_YAW
    gripper = CLOSED if near and aligned and not overclosed else OPEN
    return _through_funnel(state, thing.position[:2], height, yaw, gripper)


def _carry(task: Task, state: WorldState) -> np.ndarray:
    """Bring the held object over its place and let it go there."""
    offset = state.objects[task.subject].position - state.tool  # the object, not the hand, has to arrive
    goal, hover = _place(task, state)
    return _through_funnel(state, goal[:2] - offset[:2], goal[2] - offset[2], state.yaw, CLOSED, hover)


def _place(task: Task, state: WorldState) -> tuple[np.ndarray, float]:
    """Where the object's centre should be let go (3,), and how much higher it has to travel there."""
    half = OBJECTS[task.subject].height / 2
    if task.verb == "bin":
        return np.array([*BIN_XY[task.place], BIN_WALL_HEIGHT + half + 0.015]), 0.04
    if task.verb == "stack":
        below = state.objects[task.place]
        return below.position + UP * (OBJECTS[task.place].height + 0.002), 0.06
    return np.array([*PEG_XY, PEG_HEIGHT - 0.020]), 0.06


def _delivered(task: Task, state: WorldState) -> bool:
    """Whether the object is where it may be let go."""
    thing = state.objects[task.subject]
    goal, _ = _place(task, state)
    error = thing.position - goal
    xy = math.hypot(error[0], error[1])
    if task.verb == "bin":
        return xy < 0.03 and error[2] < 0.02
    return xy < 0.012 and -0.01 < error[2] < 0.006


def _push(task: Task, state: WorldState) -> np.ndarray:
    """Get behind the block, then push it forward, steering by where the hand touches it."""
    thing = state.objects[task.subject]
    heading = wrap_angle(thing.yaw, math.pi / 2)  # of the block's side that faces the robot most
    sideways = abs(wrap_angle(thing.yaw, math.pi)) > math.pi / 4
    length = OBJECTS[task.subject].width if sideways else BLOCK_LENGTH
    along = np.array([math.cos(heading), math.sin(heading)])
    across = np.array([-along[1], along[0]])
    relative = state.tool[:2] - thing.position[:2]
    back, side = float(relative @ along), float(relative @ across)
    start = thing.position[:2] - along * (length / 2 + 0.03)
    behind = back < -(length / 2 + 0.004) and abs(side) < 0.02 and state.tool[2] < 0.045
    if not behind:
        return _through_funnel(state, start, PUSH_HEIGHT, 0.0, CLOSED)
    contact = thing.position[:2] - along * length / 2 - across * (0.25 * BLOCK_LENGTH * heading)
    goal = np.array([LINE_X + 0.03, contact[1], PUSH_HEIGHT])
    return _to(state, goal, 0.0, CLOSED)


def _between_fingers(state: WorldState, thing: Thing) -> bool:
    error = thing.position - state.tool
    return math.hypot(error[0], error[1]) < KEEP_XY and abs(error[2]) < KEEP_Z


def _through_funnel(
    state: WorldState, xy: np.ndarray, bottom: float, yaw: float, gripper: float, hover: float = HOVER
) -> np.ndarray:
    """Toward ``xy``, no lower than a funnel whose bottom (a tool height) is there; upward first when below it."""
    error = np.asarray(xy) - state.tool[:2]
    rise = FUNNEL_SLOPE * (float(np.hypot(error[0], error[1])) - FUNNEL_FLOOR)
    height = bottom + min(max(rise, 0.0), hover)
    below = height - float(state.tool[2])
    advance = 1.0 - min(max((below - 0.01) / LAG, 0.0), 1.0)
    return _to(state, np.array([*(state.tool[:2] + advance * error), height]), yaw, gripper)


def _to(state: WorldState, goal: np.ndarray, yaw: float, gripper: float) -> np.ndarray:
    action = np.empty(5)
    action[:3] = (goal - state.tool) / control.POSITION_UNIT
    longest = np.max(np.abs(action[:3]))
    action[:3] /= max(1.0, longest)  # clipping each axis apart would bend the way
    action[3] = wrap_angle(yaw - state.yaw) / control.YAW_UNIT
    action[4] = gripper
    return np.clip(action, -1.0, 1.0)
