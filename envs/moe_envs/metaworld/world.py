"""One Meta-World task as it should behave: seeded, with a fresh layout at every reset, its goal told to the expert."""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from typing import Any

import numpy as np

from moe_robot.types import UserError

MUJOCO = "3.3.0"
INSTALL_LINE = "pip install 'moe-robot[metaworld]' 'mujoco==3.3.0'"
STEP_SECONDS = 0.0125
STEP_LIMIT = 500
"""Steps of 12.5 ms in which a task must be done; Meta-World's own limit, the same for all tasks."""

HAND, OBJECT, SECOND_OBJECT, GOAL = slice(0, 4), slice(4, 7), slice(11, 14), slice(36, 39)
"""Places in Meta-World's observation of 39 numbers: hand (x, y, z, opening), which a robot knows, and what it does not.

The rest are turns of the objects and the observation of the step before.
"""


def require() -> Any:
    """The package ``metaworld``, with the physics that it was made for.

    Raises:
        UserError: it is not installed, or beside another version of mujoco.
    """
    import mujoco

    try:
        import metaworld.env_dict
        import metaworld.policies
    except ImportError as error:
        raise UserError(f"Meta-World is not installed ({error}): run {INSTALL_LINE}") from error
    if mujoco.__version__ != MUJOCO:
        raise UserError(
            f"mujoco {mujoco.__version__} is installed, expected {MUJOCO}: with others Meta-World 3.1.1 fails at its "
            f"first reset, or contacts differ; run {INSTALL_LINE}"
        )
    return metaworld


class World:
    """The physics, the judge and the privileged state of one task.

    Args:
        task: Meta-World's name, for example ``"reach-v3"``.

    Attributes:
        seen: Meta-World's observation after the latest reset or step, float64 (39,), the goal included.
    """

    def __init__(self, task: str) -> None:
        sawyer = require().env_dict.ALL_V3_ENVIRONMENTS[task]()
        sawyer._freeze_rand_vec = False  # else every reset has the first layout
        sawyer.seeded_rand_vec = True  # else layouts come from numpy's global generator
        sawyer._set_task_called = True
        sawyer._partially_observable = False  # else the goal is told as zeros
        del sawyer.sawyer_observation_space  # it was made while the goal was hidden, and would clip it to zero
        self.sawyer = sawyer
        self.task = task
        self.seen = np.zeros(39)

    @property
    def file(self) -> str:
        """The MJCF file of the scene."""
        return str(self.sawyer.model_name)

    def reset(self, seed: int) -> None:
        """The layout that ``seed`` decides, whatever was played before."""
        sawyer = self.sawyer
        sawyer.seed(seed)  # `reset(seed=)` of Meta-World 3.1.1 does nothing with it
        self.seen, _ = sawyer.reset()
        self._refresh()

    def step(self, action: np.ndarray) -> bool:
        """One step of 12.5 ms with ``action`` (4,) in [-1, 1]; whether the task is done at its end."""
        self.seen, _, _, _, info = self.sawyer.step(action)
        return bool(info["success"])

    def _refresh(self) -> None:
        """Bring sites up to where the reset put them; a step does so by itself."""
        import mujoco

        mujoco.mj_forward(self.sawyer.model, self.sawyer.data)
