"""The Gymnasium environment ``moe_robot/PitStop-v0``."""

# pyright: reportAttributeAccessIssue=false
# (mujoco's names live in a C extension without stubs)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np

from moe_envs import options as offered
from moe_envs.labels import in_picture, label_names, labels
from moe_envs.options import RENDER_MODES, check_drawing, one_of
from moe_envs.pitstop import control as controls
from moe_envs.pitstop import dimensions as dim
from moe_envs.pitstop import panda
from moe_envs.pitstop import tasks as rules
from moe_envs.pitstop.expert import PitStopExpert
from moe_envs.pitstop.language import INSTRUCTION_SETS, sentence
from moe_envs.pitstop.layout import Layout, draw_layout
from moe_envs.pitstop.scene import TIMESTEP, build_model
from moe_envs.rendering import CameraRenderer
from moe_envs.window import Window
from moe_robot.kinematics import yaw_rotation
from moe_robot.registry import unknown
from moe_robot.types import UserError

CAMERAS = ("front", "wrist")
CONTROL_RATES = (10, 20)
PICTURE_SIZE = (480, 640)
"""(height, width) of what ``render()`` gives, for people."""
REFERENCE_UPDATES = 5
"""How often the servo reference moves on within a control step."""
RESET_OPTIONS = ("task", "instructions", "named_task")


class PitStopEnv(gymnasium.Env):
    """A Franka Panda at a table; which of many things to do is told by a sentence alone.

    Observation: ``{"pixels": {camera: uint8 (H, W, 3)}, "agent_pos": float32 (19,)}``; ``state_names`` names the 19:
    joint positions (rad) and velocities (rad/s), gripper opening (m), hand position (m) and yaw (rad) in the world
    frame, whose origin is the robot's base on the table top (x ahead, y left, z up; left and right are the robot's).

    Action, float32 in [-1, 1]: ``cartesian`` (5,) is where the hand should go relative to where it is measured to be,
    dx, dy, dz in units of 0.40 m, dyaw in units of pi/2 rad (world frame); ``joint`` (8,) is where the joints should
    go relative to where they are measured to be, in rad. The last entry is the gripper, -1 closed to 1 open. The
    waypoint may be far: the arm moves toward it at no more than 0.4 m/s and 2 rad/s (joint: 1.5 rad/s).

    ``info``: ``task`` (the sentence), ``task_name``, ``success`` = ``is_success``, ``wrong`` (another button pressed or
    another object lifted, which ends the episode), ``named_success``. The reward is 1 on success, else 0.
    """

    metadata = {"render_modes": [*RENDER_MODES], "render_fps": 10}  # noqa: RUF012  (Gymnasium's own form)
    task_groups: Mapping[str, tuple[str, ...]] = rules.TASK_GROUPS
    instruction_sets: tuple[str, ...] = INSTRUCTION_SETS
    state_names: tuple[str, ...] = controls.STATE_NAMES
    joint_names: tuple[str, ...] = (*panda.JOINTS, *panda.FINGERS)

    def __init__(
        self,
        objects: str = "demo",
        control: str = "cartesian",
        control_hz: int = 10,
        image_size: int | tuple[int, int] = 96,
        cameras: str | Sequence[str] = CAMERAS,
        render: str = "fast",
        render_mode: str | None = None,
    ) -> None:
        """Build the world; nothing of OpenGL is touched before the first picture.

        Args:
            objects: what lies on the table: ``"demo"`` (two cubes, three buttons) or ``"all"`` (all 22 tasks need it).
            control: ``"cartesian"`` or ``"joint"``.
            control_hz: 10 or 20 actions per second.
            image_size: pixels of the square camera pictures, or (height, width).
            cameras: which of ``front`` and ``wrist`` to observe; with none there is no ``pixels`` and no need of GL.
            render: ``"fast"`` for learning, ``"full"`` for pictures that people look at.
            render_mode: ``None``, ``"rgb_array"`` or ``"human"`` (MuJoCo's viewer).

        Raises:
            UserError: an option has a value that is not offered.
        """
        one_of("objects", objects, dim.SCENES)
        one_of("control", control, controls.CONTROLS)
        check_drawing(render, render_mode)
        if control_hz not in CONTROL_RATES:
            raise UserError(f"control_hz={control_hz!r} is not offered: choose from 10 or 20")
        self.objects, self.control, self.control_hz = objects, control, int(control_hz)
        self.cameras, self.render_quality, self.render_mode = offered.cameras(cameras, CAMERAS), render, render_mode
        self.image_size = offered.image_size(image_size)
        self.metadata = {**self.metadata, "render_fps": self.control_hz}
        self.tasks: tuple[str, ...] = rules.SCENE_TASKS[objects]
        self.action_names = controls.CARTESIAN_NAMES if control == "cartesian" else controls.JOINT_NAMES
        self.environment_names = label_names(rules.labelled_things(objects), self.cameras)
        self.task_description = ""

        self.model = build_model(objects, render)
        self.data = mujoco.MjData(self.model)
        self.chain = panda.tool_chain(self.model)
        self._index()
        self._renderer: CameraRenderer | None = None
        self._window: Window | None = None
        self._task = self._named = rules.TASKS[self.tasks[0]]
        self._allowed: frozenset[str] = frozenset()
        self._motion = controls.Motion(panda.POSTURE, np.zeros(7), dim.MAX_OPENING, 1.0 / self.control_hz)
        self._followed = 0

        spaces: dict[str, gymnasium.Space] = {
            "agent_pos": gymnasium.spaces.Box(-controls.STATE_BOUND, controls.STATE_BOUND, dtype=np.float32)
        }
        if self.cameras:  # Gymnasium refuses an empty Dict
            shape = (*self.image_size, 3)
            spaces["pixels"] = gymnasium.spaces.Dict(
                {name: gymnasium.spaces.Box(0, 255, shape, np.uint8) for name in self.cameras}
            )
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.action_names),), np.float32)

    # ------------------------------------------------------------------ Gymnasium

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode. ``options``: ``task``, ``instructions`` (an instruction set), ``named_task``.

        The layout is drawn first and does not depend on the task; without ``task`` one is drawn uniformly. With
        ``named_task`` the sentence speaks of that one while ``task`` is judged (the shuffled test).
        """
        super().reset(seed=seed)
        options = dict(options or {})
        for key in options:
            if key not in RESET_OPTIONS:
                raise unknown("reset option", key, RESET_OPTIONS)
        layout = draw_layout(self.objects, self.np_random)
        drawn = self.tasks[int(self.np_random.integers(len(self.tasks)))]
        self._task = self._resolve(options.get("task") or drawn)
        self._named = self._resolve(options.get("named_task") or self._task.name)
        self._allowed = self._task.things | self._named.things
        instructions = options.get("instructions") or "seen"
        if instructions not in INSTRUCTION_SETS:
            raise unknown("instruction set", instructions, INSTRUCTION_SETS)
        self.task_description = sentence(self._named.name, instructions, self.np_random)
        self._place(layout)
        return self._observe(), self._info(self.state())

    @staticmethod
    def options_for(tasks: Sequence[str]) -> dict[str, Any]:
        """Constructor options that ``tasks`` need: the small scene when it has all that they are about."""
        return {"objects": next(name for name, has in rules.SCENE_TASKS.items() if set(tasks) <= set(has))}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Move for one control period. Terminates on success and when something else was done."""
        period = 1.0 / self.control_hz
        action = np.asarray(action, float)
        self._begin(controls.plan(self.chain, self.joint_positions(), action, self.control, period))
        for _ in range(REFERENCE_UPDATES):
            self._follow()
        self._refresh()
        info = self.outcome()
        success = bool(info["success"])
        terminated = success or bool(info["wrong"]) or bool(info["named_success"])
        if self.render_mode == "human":
            self.render()
        return self._observe(), float(success), terminated, False, info

    def render(self) -> np.ndarray | None:
        """``rgb_array``: the front view, uint8 (480, 640, 3). ``human``: MuJoCo's viewer, in real time."""
        if self.render_mode == "rgb_array":
            return self._open_renderer().draw(self.data, ("front",), PICTURE_SIZE)["front"]
        if self.render_mode == "human":
            if self._window is None:
                self._window = Window(self.model, self.data, 1.0 / self.control_hz)
            self._window.show()
        return None

    def close(self) -> None:
        """Free the GL context and the window. Safe to call again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but GL, which belongs to one process: the copy opens its own at its first picture."""
        return {**self.__dict__, "_renderer": None, "_window": None}

    # ------------------------------------------------------------------ as a robot in real time

    @property
    def update_s(self) -> float:
        """How much time passes in :meth:`advance`, seconds."""
        return 1.0 / self.control_hz / REFERENCE_UPDATES

    def move_joints(self, positions: np.ndarray) -> None:
        """Begin to move the joints to ``positions`` (7,), rad.

        The servos get there, as they do in :meth:`step`, after one control period at no more than 2.5 rad/s, and hold.
        """
        opening = 2 * float(self.data.ctrl[self._gripper])
        period = 1.0 / self.control_hz
        self._begin(controls.motion_to(self.chain, self.joint_positions(), positions, opening, period))

    def move_fingers(self, opening: float) -> None:
        """Begin to move the finger pads ``opening`` metres apart."""
        self.data.ctrl[self._gripper] = min(max(opening, 0.0), dim.MAX_OPENING) / 2

    def advance(self) -> None:
        """Let ``update_s`` seconds pass."""
        self._follow()
        self._refresh()

    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Measured positions (9,) and velocities (9,) of ``joint_names``: rad and rad/s, of the fingers m and m/s."""
        position = self.data.qpos[np.concatenate([self._arm_qpos, self._finger_qpos])]
        return position, self.data.qvel[np.concatenate([self._arm_dof, self._finger_dof])]

    def outcome(self) -> dict[str, Any]:
        """``info`` as :meth:`step` would tell it now."""
        return self._info(self.state())

    # ------------------------------------------------------------------ for collection and evaluation

    def make_expert(self, task: str) -> PitStopExpert:
        """The scripted expert of ``task``, bound to this environment."""
        return PitStopExpert(self, self._resolve(task).name)

    @property
    def renderer(self) -> str:
        """Quality, backend and GL driver, for reports. Opens the GL context."""
        return self._open_renderer().describe()

    def pictures(self) -> dict[str, np.ndarray]:
        """What the observed cameras see now: camera -> uint8 (H, W, 3)."""
        return self._open_renderer().draw(self.data, self.cameras, self.image_size)

    def joint_positions(self) -> np.ndarray:
        """(7,) measured, rad."""
        return self.data.qpos[self._arm_qpos].copy()

    def state(self) -> rules.WorldState:
        """The privileged state that success and the expert look at."""
        data = self.data
        rotation = data.xmat[self._hand].reshape(3, 3)
        tops = {name: self.model.body_pos[body] + (0, 0, dim.BUTTON_TOP) for name, (body, _) in self._buttons.items()}
        objects = {}
        for name, (body, dof) in self._object_ids.items():
            axes = data.xmat[body].reshape(3, 3)
            # A cube may have tumbled: any of its axes that is level tells its yaw. The others' own x axis does.
            axis = axes[:, int(np.argmin(np.abs(axes[2])))] if name.endswith("cube") else axes[:, 0]
            speed = float(np.linalg.norm(data.qvel[dof : dof + 3]))
            objects[name] = rules.Thing(data.xpos[body].copy(), float(np.arctan2(axis[1], axis[0])), speed)
        return rules.WorldState(
            tool=data.xpos[self._hand] + panda.TOOL_OFFSET * rotation[:, 2],
            yaw=float(np.arctan2(rotation[1, 0], rotation[0, 0])),
            opening=float(data.qpos[self._finger_qpos].sum()),
            objects=objects,
            buttons=tops,
            travel={name: float(data.qpos[i]) for name, (_, i) in self._buttons.items()},
        )

    def environment_state(self) -> np.ndarray:
        """Where things are, float32, in the order of ``environment_names``: labels for training, never observed.

        In the world and in each observed camera's picture (:mod:`moe_envs.labels`). ``object`` and ``goal`` are of the
        task that the sentence names.
        """
        places = rules.places(self.objects, self._named, self.state())
        return labels(
            places, {name: in_picture(places, self.model, self.data, name, self.image_size) for name in self.cameras}
        )

    # ------------------------------------------------------------------ inside

    def _index(self) -> None:
        model = self.model
        self._arm = [int(model.actuator(name).id) for name in panda.ARM_ACTUATORS]
        self._gripper = int(model.actuator(panda.GRIPPER_ACTUATOR).id)
        self._arm_qpos = np.array([int(model.joint(name).qposadr[0]) for name in panda.JOINTS])
        self._arm_dof = np.array([int(model.joint(name).dofadr[0]) for name in panda.JOINTS])
        self._finger_qpos = np.array([int(model.joint(name).qposadr[0]) for name in panda.FINGERS])
        self._finger_dof = np.array([int(model.joint(name).dofadr[0]) for name in panda.FINGERS])
        self._hand = int(model.body("hand").id)
        self._object_ids = {
            name: (int(model.body(name).id), int(model.joint(name).dofadr[0]))
            for name in dim.SCENE_OBJECTS[self.objects]
        }
        self._buttons = {
            name: (int(model.body(f"{name}_button").id), int(model.joint(f"{name}_button").qposadr[0]))
            for name in dim.BUTTONS
        }

    def _resolve(self, task: str) -> rules.Task:
        if task in self.tasks:
            return rules.TASKS[task]
        if task in rules.TASKS:
            raise UserError(
                f"task {task!r} needs things that are not on the table: expected one of {', '.join(self.tasks)} with "
                f"objects={self.objects!r}; make the environment with objects='all'"
            )
        raise unknown("task", task, self.tasks)

    def _place(self, layout: Layout) -> None:
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        for name, (x, y) in layout.buttons.items():
            model.body_pos[self._buttons[name][0]][:2] = x, y
        for name, (x, y, yaw) in layout.objects.items():
            address = int(model.joint(name).qposadr[0])
            height = dim.OBJECTS[name].height / 2
            data.qpos[address : address + 7] = [x, y, height, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        q = self.chain.solve(
            panda.POSTURE, layout.tool, yaw_rotation(layout.yaw) @ panda.DOWN, panda.POSTURE, iterations=30
        )
        data.qpos[self._arm_qpos] = data.ctrl[self._arm] = q
        data.qpos[self._finger_qpos] = dim.MAX_OPENING / 2
        self._begin(controls.Motion(q, np.zeros(7), dim.MAX_OPENING, 1.0 / self.control_hz))
        self._refresh()

    def _begin(self, motion: controls.Motion) -> None:
        self._motion, self._followed = motion, 0
        self.data.ctrl[self._gripper] = motion.opening / 2

    def _follow(self) -> None:
        """One update of the servo reference, and the physics until the next."""
        period = 1.0 / self.control_hz
        self.data.ctrl[self._arm] = self._motion.reference((self._followed + 0.5) * period / REFERENCE_UPDATES)
        mujoco.mj_step(self.model, self.data, round(period / TIMESTEP / REFERENCE_UPDATES))
        self._followed += 1

    def _refresh(self) -> None:
        """Bring poses, cameras and lights up to the joint positions; ``mj_step`` leaves them one substep behind."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _observe(self) -> dict[str, Any]:
        position, yaw = controls.tool_pose(self.chain, self.joint_positions())
        opening = self.data.qpos[self._finger_qpos].sum()
        parts = (self.data.qpos[self._arm_qpos], self.data.qvel[self._arm_dof], [opening], position, [yaw])
        observation: dict[str, Any] = {"agent_pos": np.concatenate(parts).astype(np.float32)}
        if self.cameras:
            observation["pixels"] = self.pictures()
        return observation

    def _info(self, state: rules.WorldState) -> dict[str, Any]:
        success = rules.succeeded(self._task, state)
        return {
            "task": self.task_description,
            "task_name": self._task.name,
            "success": success,
            "is_success": success,
            "wrong": not success and rules.went_wrong(self._allowed, state),
            "named_success": rules.succeeded(self._named, state),
        }

    def _open_renderer(self) -> CameraRenderer:
        if self._renderer is None:
            size = offered.largest(self.image_size, PICTURE_SIZE)
            hidden = (panda.DETAIL_GROUP,) if self.render_quality == "full" else ()
            self._renderer = CameraRenderer(self.model, self.render_quality, size, hidden)
        return self._renderer
