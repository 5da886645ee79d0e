"""MuJoCo worlds as Gymnasium environments.

``import gymnasium, moe_envs`` registers them (so do ``gymnasium.make("moe_envs:moe_robot/PitStop-v0")`` and every
``moe-robot`` verb). Where Gymnasium is not loaded yet it is not loaded from here: call :func:`register` then.
"""

from __future__ import annotations

import sys
from typing import Any

PITSTOP = "moe_robot/PitStop-v0"
METAWORLD = "moe_robot/MetaWorld-v0"


def register() -> None:
    """Register the environments; again is harmless.

    It is the entry point (group ``gymnasium.envs``) through which :mod:`moe_robot.registry` finds them; Gymnasium 1.x
    itself no longer loads that group.
    """
    import gymnasium

    for env_id, maker in ((PITSTOP, "make_pitstop"), (METAWORLD, "make_metaworld")):
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=f"moe_envs:{maker}")


def make_pitstop(**options: Any) -> Any:
    """PitStop with its time limit, which is in seconds and therefore a number of steps that depends on ``control_hz``.

    ``options`` are those of :class:`moe_envs.pitstop.env.PitStopEnv`.
    """
    _require_mujoco()
    from moe_envs.pitstop.env import PitStopEnv
    from moe_envs.pitstop.tasks import TIME_LIMIT_S

    return _limited(PitStopEnv(**options), TIME_LIMIT_S)


def make_metaworld(**options: Any) -> Any:
    """Meta-World with its time limit of 500 steps of its own, fewer where an action is held for several.

    ``options`` are those of :class:`moe_envs.metaworld.env.MetaWorldEnv`.
    """
    _require_mujoco()
    from moe_envs.metaworld.env import MetaWorldEnv
    from moe_envs.metaworld.world import STEP_LIMIT, STEP_SECONDS

    return _limited(MetaWorldEnv(**options), STEP_LIMIT * STEP_SECONDS)


def _limited(env: Any, seconds: float) -> Any:
    from gymnasium.wrappers import TimeLimit

    return TimeLimit(env, max_episode_steps=round(seconds * env.control_hz))


def _require_mujoco() -> None:
    from moe_envs.rendering import no_gl

    try:
        import mujoco  # noqa: F401
    except (ImportError, AttributeError) as error:  # what MUJOCO_GL=egl gives where the library is missing
        raise no_gl(error) from error


if "gymnasium" in sys.modules:
    register()
