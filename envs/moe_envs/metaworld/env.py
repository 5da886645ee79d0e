"""The Gymnasium environment ``moe_robot/MetaWorld-v0``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from moe_envs import options as offered
from moe_envs.labels import OUTSIDE, label_names, labels
from moe_envs.metaworld.drawing import CAMERAS, Drawing
from moe_envs.metaworld.expert import MetaWorldExpert
from moe_envs.metaworld.tasks import MT50, SENTENCES, TASK_GROUPS, TIERS
from moe_envs.metaworld.world import GOAL, HAND, OBJECT, SECOND_OBJECT, STEP_SECONDS, World, require
from moe_envs.options import RENDER_MODES, check_drawing, one_of
from moe_envs.window import Window
from moe_robot.registry import unknown
from moe_robot.types import UserError

CONTROL_RATES = (80, 40, 20)
PICTURE_SIZE = (480, 480)
"""(height, width) of what ``render()`` gives, for people."""
STATE_NAMES = ("hand.x", "hand.y", "hand.z", "gripper.opening")
ACTION_NAMES = ("hand.dx", "hand.dy", "hand.dz", "gripper")
LABELLED_THINGS = ("object", "second_object", "goal")
STATE_BOUND = 10.0
KEPT_WORLDS = 8
"""Scenes that stay built; each takes 0.7 s to build and 100 MB, most of it for textures."""
RESET_OPTIONS = ("task", "instructions", "named_task")


class MetaWorldEnv(gymnasium.Env):
    """A Sawyer at a table, one scene for each of Meta-World's 50 tasks.

    Observation: ``{"pixels": {camera: uint8 (H, W, 3)}, "agent_pos": float32 (4,)}``: the hand's position (m, world
    frame: x right, y away from the robot, z up, seen from it) and the gripper's opening (0 to 1). Nothing else:
    Meta-World's own observation tells where the objects and the goal are, and here only the expert sees it.

    Action, float32 (4,) in [-1, 1]: motion of the commanded hand position (1 is 1 cm per 12.5 ms) and the gripper
    (-1 open, 1 closed). An action is held for ``80 / control_hz`` steps of Meta-World.

    An episode ends with success at the first step that Meta-World calls so, as is usual where pictures are reported,
    or after 500 steps of 12.5 ms. ``info``: ``task`` (the sentence), ``task_name``, ``success`` = ``is_success``,
    ``named_success`` (always False where the sentence names another task: its things are not in the scene). The reward
    is 1 on success, else 0.
    """

    metadata = {"render_modes": [*RENDER_MODES], "render_fps": 80}  # noqa: RUF012  (Gymnasium's own form)
    task_groups: Mapping[str, tuple[str, ...]] = TASK_GROUPS
    instruction_sets: tuple[str, ...] = ("seen",)
    task_tiers: Mapping[str, tuple[str, ...]] = {tier: tuple(tasks) for tier, tasks in TIERS.items()}
    scene_per_task = True
    state_names: tuple[str, ...] = STATE_NAMES
    action_names: tuple[str, ...] = ACTION_NAMES

    def __init__(
        self,
        task: str = "mt50",
        control_hz: int = 80,
        image_size: int | tuple[int, int] = 96,
        cameras: str | Sequence[str] = ("corner2",),
        render: str = "fast",
        render_mode: str | None = None,
    ) -> None:
        """Check the options; scenes are built when they are first played.

        Args:
            task: the task, or the group (``mt10``, ``mt50``, ``easy``, ``medium``, ``hard``, ``very_hard``) that a
                reset without a task draws from.
            control_hz: 80 (an action per step of Meta-World), 40 or 20 (each held for 2 or 4 steps).
            image_size: pixels of the square camera pictures, or (height, width).
            cameras: which cameras to observe; with none there is no ``pixels`` and no need of GL.
            render: ``"fast"`` for learning, ``"full"`` for Meta-World's own pictures, 50 times slower without a GPU.
            render_mode: ``None``, ``"rgb_array"`` or ``"human"`` (MuJoCo's viewer).

        Raises:
            UserError: an option has a value that is not offered, or Meta-World is missing.
        """
        require()
        one_of("task", task, (*TASK_GROUPS, *MT50))
        check_drawing(render, render_mode)
        if control_hz not in CONTROL_RATES:
            raise UserError(
                f"control_hz={control_hz!r} is not offered: choose from {', '.join(map(str, CONTROL_RATES))}"
            )
        self.control_hz, self.image_size = int(control_hz), offered.image_size(image_size)
        self.cameras, self.render_quality, self.render_mode = offered.cameras(cameras, CAMERAS), render, render_mode
        self.metadata = {**self.metadata, "render_fps": self.control_hz}
        self.tasks: tuple[str, ...] = TASK_GROUPS.get(task, (task,))
        self.task_description = ""
        self.environment_names = label_names(LABELLED_THINGS, self.cameras)
        self._repeat = round(1 / STEP_SECONDS / self.control_hz)
        self._worlds: OrderedDict[str, World] = OrderedDict()
        self._drawings: dict[str, Drawing] = {}
        self._window: Window | None = None
        self._current: World | None = None

        spaces: dict[str, gymnasium.Space] = {
            "agent_pos": gymnasium.spaces.Box(-STATE_BOUND, STATE_BOUND, (len(STATE_NAMES),), np.float32)
        }
        if self.cameras:  # Gymnasium refuses an empty Dict
            picture = gymnasium.spaces.Box(0, 255, (*self.image_size, 3), np.uint8)
            spaces["pixels"] = gymnasium.spaces.Dict(dict.fromkeys(self.cameras, picture))
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(ACTION_NAMES),), np.float32)

    # ------------------------------------------------------------------ Gymnasium

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode on a fresh layout. ``options``: ``task``, ``instructions``, ``named_task``.

        Without ``task`` one is drawn uniformly. With ``named_task`` the sentence speaks of that one while ``task`` is
        played and judged (the shuffled test).
        """
        super().reset(seed=seed)
        options = dict(options or {})
        for key in options:
            if key not in RESET_OPTIONS:
                raise unknown("reset option", key, RESET_OPTIONS)
        if (options.get("instructions") or "seen") not in self.instruction_sets:
            raise unknown("instruction set", str(options["instructions"]), self.instruction_sets)
        layout = int(self.np_random.integers(2**31))
        drawn = self.tasks[int(self.np_random.integers(len(self.tasks)))]
        task = _known(options.get("task") or drawn)
        self.task_description = SENTENCES[_known(options.get("named_task") or task)]
        self._named = not options.get("named_task") or options["named_task"] == task
        self._current = self._open(task)
        self._current.reset(layout)
        return self._observe(), self._info(False)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Move for one control period, or until the task is done, which ends the episode."""
        world = self._world()
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        success = any(world.step(action) for _ in range(self._repeat))
        if self.render_mode == "human":
            self.render()
        return self._observe(), float(success), success, False, self._info(success)

    def render(self) -> np.ndarray | None:
        """``rgb_array``: the view of ``corner2``, uint8 (480, 480, 3). ``human``: MuJoCo's viewer, in real time."""
        world = self._world()
        if self.render_mode == "rgb_array":
            return self._drawing().draw(world.sawyer.data, ("corner2",), PICTURE_SIZE)["corner2"]
        if self.render_mode == "human":
            if self._window is None:
                self._window = Window(world.sawyer.model, world.sawyer.data, 1.0 / self.control_hz)
            self._window.show()
        return None

    def close(self) -> None:
        """Free the GL contexts and the window. Safe to call again."""
        for drawing in self._drawings.values():
            drawing.close()
        self._drawings.clear()
        self._close_window()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the scenes, which are built anew: the copy has to be reset before it is played."""
        gone = {"_worlds": OrderedDict(), "_drawings": {}, "_window": None, "_current": None}
        return {**self.__dict__, **gone}

    # ------------------------------------------------------------------ for collection and evaluation

    def make_expert(self, task: str) -> MetaWorldExpert:
        """Meta-World's scripted expert of ``task``, bound to this environment."""
        return MetaWorldExpert(_known(task), self._world)

    @property
    def renderer(self) -> str:
        """Quality, backend and GL driver, for reports. Opens a GL context."""
        if self._current is None:
            self._current = self._open(self.tasks[0])
        return self._drawing().describe()

    def pictures(self) -> dict[str, np.ndarray]:
        """What the observed cameras see now: camera -> uint8 (H, W, 3)."""
        return self._drawing().draw(self._world().sawyer.data, self.cameras, self.image_size)

    def environment_state(self) -> np.ndarray:
        """Where the objects and the goal are, float32, in the order of ``environment_names``; labels, never observed.

        In the world, zeros where there is no second object, and in each observed camera's picture
        (:mod:`moe_envs.labels`).
        """
        world = self._world()
        places = np.stack([world.seen[OBJECT], world.seen[SECOND_OBJECT], world.seen[GOAL]])
        pictures = {}
        for camera in self.cameras:
            pictures[camera] = self._drawing().in_picture(places, world.sawyer.data, camera, self.image_size)
            pictures[camera][~places.any(axis=1)] = OUTSIDE
        return labels(places, pictures)

    # ------------------------------------------------------------------ inside

    def _world(self) -> World:
        if self._current is None:
            raise UserError("nothing is being played yet: call reset() first")
        return self._current

    def _open(self, task: str) -> World:
        """The scene of ``task``, built if need be; the one that was not played for longest makes room."""
        if self._current is not None and self._current.task != task:
            self._close_window()  # it shows the scene that is left
        if task not in self._worlds:
            if len(self._worlds) >= KEPT_WORLDS:
                oldest, _ = self._worlds.popitem(last=False)
                if oldest in self._drawings:
                    self._drawings.pop(oldest).close()
            self._worlds[task] = World(task)
        self._worlds.move_to_end(task)
        return self._worlds[task]

    def _drawing(self) -> Drawing:
        world = self._world()
        if world.task not in self._drawings:
            size = offered.largest(self.image_size, PICTURE_SIZE)
            self._drawings[world.task] = Drawing(world.file, self.render_quality, size)
        return self._drawings[world.task]

    def _observe(self) -> dict[str, Any]:
        world = self._world()
        observation: dict[str, Any] = {"agent_pos": world.seen[HAND].astype(np.float32)}
        if self.cameras:
            observation["pixels"] = self.pictures()
        return observation

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            "task": self.task_description,
            "task_name": self._world().task,
            "success": success,
            "is_success": success,
            "named_success": success and self._named,
        }

    def _close_window(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None


def _known(task: str) -> str:
    one_of("task", task, MT50)
    return task
