"""The 22 tasks of PitStop: what each asks for, when it is done, and what counts as doing something else.

Every threshold is a constant in the table below, in metres (positions), metres per second and seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moe_envs.pitstop.dimensions import (
    BIN_HALF,
    BIN_WALL_HEIGHT,
    BIN_XY,
    BLOCK_LENGTH,
    BUTTONS,
    LINE_X,
    OBJECTS,
    PEG_HEIGHT,
    PEG_XY,
    SCENE_OBJECTS,
)

TIME_LIMIT_S = 10.0
PICK_LIFT = 0.08  # the object's centre has risen this far above where it rests on the table ...
PICK_REACH = 0.04  # ... and is this near the point between the finger pads
WRONG_LIFT = 0.05  # another object has risen this far
PRESS_TRAVEL = 0.006  # a button's cap is this far down; full travel is BUTTON_TRAVEL
STACK_OFFSET = 0.022  # horizontal distance of the two cubes' centres, at most
STACK_HEIGHT_ERROR = 0.006  # vertical distance of the centres less one cube height, at most
RELEASE_OPENING = 0.055  # the fingers are at least this far apart: the cube stands by itself
REST_SPEED = 0.05
PEG_OFFSET = 0.009  # horizontal distance of the nut's centre from the peg's axis, at most
PEG_DEPTH = 0.012  # the peg's top stands at least this far over the nut's centre
LINE_REACHED = LINE_X - BLOCK_LENGTH / 2  # the block's centre when its far end touches the line


@dataclass(frozen=True)
class Thing:
    """A movable object at one instant: centre (3,) in the world frame, yaw (rad) of its grasp frame, speed (m/s)."""

    position: np.ndarray
    yaw: float
    speed: float


@dataclass(frozen=True)
class WorldState:
    """Everything success and the scripted expert may look at.

    Attributes:
        tool: (3,) the point between the finger pads, world frame, metres.
        yaw: of the hand, radians; 0 when the fingers open along the world's y axis.
        opening: distance between the finger pads, metres.
        objects: name -> :class:`Thing`, those that lie on this scene's table.
        buttons: colour -> (3,) centre of the cap's top at rest.
        travel: colour -> how far the cap is down.
    """

    tool: np.ndarray
    yaw: float
    opening: float
    objects: Mapping[str, Thing]
    buttons: Mapping[str, np.ndarray]
    travel: Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """One task: ``verb`` (pick, bin, stack, peg, press, push), its subject and where it goes (a bin's side, a cube)."""

    name: str
    verb: str
    subject: str
    place: str = ""

    @property
    def things(self) -> frozenset[str]:
        """Objects and buttons (``"red button"``) that this task may touch without doing something else."""
        if self.verb == "press":
            return frozenset({f"{self.subject} button"})
        return frozenset({self.subject})


def _all_tasks() -> dict[str, Task]:
    tasks = [Task(f"press_{colour}", "press", colour) for colour in BUTTONS]
    tasks += [Task(f"pick_{name}", "pick", name) for name in OBJECTS]
    tasks += [Task(f"bin_{name}_{side}", "bin", name, side) for name in OBJECTS for side in BIN_XY]
    tasks += [
        Task("stack_red_on_blue", "stack", "red_cube", "blue_cube"),
        Task("stack_blue_on_red", "stack", "blue_cube", "red_cube"),
        Task("nut_on_peg", "peg", "purple_nut"),
        Task("push_block", "push", "green_block"),
    ]
    return {task.name: task for task in tasks}


TASKS: dict[str, Task] = _all_tasks()
DEMO_TASKS = ("press_red", "press_green", "press_blue", "pick_red_cube", "pick_blue_cube")
NEW_COMBOS = ("pick_purple_nut", "bin_red_cube_left", "bin_green_block_right", "bin_yellow_wheel_left")
"""Tasks for a training run that never sees them: each verb, thing and side is known from the other 18 (``combos``)."""
TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "demo": DEMO_TASKS,
    "all": tuple(TASKS),
    "combos": tuple(name for name in TASKS if name not in NEW_COMBOS),
    "newcombos": NEW_COMBOS,
}
SCENE_TASKS = {"demo": DEMO_TASKS, "all": tuple(TASKS)}


def labelled_things(scene: str) -> tuple[str, ...]:
    """Names of the things of :func:`places`: what the sentence is about, then all that is on the table."""
    return ("object", "goal", *SCENE_OBJECTS[scene], *(f"{colour}_button" for colour in BUTTONS))


def places(scene: str, task: Task, state: WorldState) -> np.ndarray:
    """Where things are (T, 3), world frame, metres: centres of objects, tops of the buttons' caps at rest.

    ``object`` is the task's subject, ``goal`` where it is to be; where a button is pressed, both are the button.
    """
    centres = [state.objects[name].position for name in SCENE_OBJECTS[scene]]
    return np.stack([*_meant(task, state), *centres, *(state.buttons[colour] for colour in BUTTONS)])


def _meant(task: Task, state: WorldState) -> tuple[np.ndarray, np.ndarray]:
    if task.verb == "press":
        return state.buttons[task.subject], state.buttons[task.subject]
    thing = state.objects[task.subject].position
    goals = {
        "pick": lambda: thing + np.array([0.0, 0.0, PICK_LIFT]),
        "bin": lambda: np.array([*BIN_XY[task.place], OBJECTS[task.subject].height / 2]),
        "stack": lambda: state.objects[task.place].position + np.array([0.0, 0.0, OBJECTS[task.subject].height]),
        "peg": lambda: np.array([*PEG_XY, PEG_HEIGHT]),
        "push": lambda: np.array([LINE_REACHED, *thing[1:]]),
    }
    return thing, goals[task.verb]()


def lift(state: WorldState, name: str) -> float:
    """How far an object's centre is above where it rests on the table, metres."""
    return float(state.objects[name].position[2]) - OBJECTS[name].height / 2


def succeeded(task: Task, state: WorldState) -> bool:
    """Whether ``task`` is done in ``state``."""
    if task.verb == "press":
        return state.travel[task.subject] >= PRESS_TRAVEL
    thing = state.objects[task.subject]
    x, y, z = thing.position
    if task.verb == "pick":
        held = float(np.linalg.norm(thing.position - state.tool)) <= PICK_REACH
        return held and lift(state, task.subject) >= PICK_LIFT
    if task.verb == "bin":
        bin_x, bin_y = BIN_XY[task.place]
        return bool(max(abs(x - bin_x), abs(y - bin_y)) < BIN_HALF and z < BIN_WALL_HEIGHT)
    if task.verb == "stack":
        below = state.objects[task.place].position
        aligned = np.hypot(x - below[0], y - below[1]) <= STACK_OFFSET
        level = abs(z - below[2] - OBJECTS[task.subject].height) <= STACK_HEIGHT_ERROR
        return bool(aligned and level and state.opening >= RELEASE_OPENING and thing.speed <= REST_SPEED)
    if task.verb == "peg":
        return bool(np.hypot(x - PEG_XY[0], y - PEG_XY[1]) <= PEG_OFFSET and z <= PEG_HEIGHT - PEG_DEPTH)
    return bool(x >= LINE_REACHED and z <= OBJECTS[task.subject].height)


def went_wrong(allowed: frozenset[str], state: WorldState) -> bool:
    """Whether a button was pressed or an object lifted that is none of ``allowed`` (see :attr:`Task.things`)."""
    if any(travel >= PRESS_TRAVEL and f"{colour} button" not in allowed for colour, travel in state.travel.items()):
        return True
    return any(name not in allowed and lift(state, name) >= WRONG_LIFT for name in state.objects)
