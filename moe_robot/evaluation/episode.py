"""One rollout: a job in, an episode with its outcome, timings and routing out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moe_robot.evaluation.roles import SHUFFLED, Cast, Episode, Job, named_task, sensor_names
from moe_robot.evaluation.stage import Stage
from moe_robot.registry import environment_features
from moe_robot.types import Observation, Policy, Routing, SensorSwitches, UserError

__all__ = ["SHUFFLED", "Actor", "Cast", "Episode", "Job", "OnStep", "named_task", "sensor_names", "switch_off"]

OnStep = Callable[[Observation, Routing | None, int], None]


def switch_off(policy: Policy, job: Job) -> None:
    """Switch off in ``policy`` what the job is without, and all else on."""
    policy.disable_experts((job.knockout,) if job.knockout else ())
    if isinstance(policy, SensorSwitches):
        policy.disable_sensors(sensor_names(job.sensors_off))


class Actor:
    """A policy and an environment in one process, ready to run jobs.

    Torch runs on one thread meanwhile: sums then have one order, so that an outcome depends on the job alone and not
    on how many workers share the machine.

    Raises:
        UserError: when the policy's features are not those of the environment.
    """

    def __init__(self, cast: Cast, rehearsal: Job) -> None:
        import torch

        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.cast = cast
        self.stage: Stage | None = None
        try:
            self.policy = cast.policy_factory(cast.checkpoint, cast.device)
            self.stage = Stage(cast)
            reason = self.policy.features.mismatch(environment_features(self.env))
            if reason:
                raise UserError(
                    f"checkpoint {cast.checkpoint} does not fit {cast.environment}: {reason}; "
                    "give the options it was trained with (--env-options), or train on this environment"
                )
            self.roles = self._rehearse(rehearsal)
        except BaseException:
            self.close()
            raise

    @property
    def env(self) -> Any:
        """The environment."""
        assert self.stage is not None
        return self.stage.env

    def _rehearse(self, job: Job) -> tuple[str, ...] | None:
        """One untimed inference, so that no episode pays for warm-up. Returns the expert roles, None without a gate."""
        assert self.stage is not None
        seen = self.stage.begin(job)
        self.policy.reset()
        self.policy.select_action(seen)
        routing = self.policy.routing()
        return None if routing is None else tuple(dict.fromkeys(routing.roles))

    def run(self, job: Job, on_step: OnStep | None = None) -> Episode:
        """Play one episode. ``on_step(observation, routing, step)`` gets what the policy saw, and the last frame."""
        import torch

        policy, stage = self.policy, self.stage
        assert stage is not None
        switch_off(policy, job)
        torch.manual_seed(job.seed)  # for heads that sample; a seeded episode is the same in any process
        seen = stage.begin(job)
        policy.reset()
        latencies: list[float] = []
        durations: list[float] = []
        routing: Routing | None = None  # of the latest inference
        total: Routing | None = None
        while stage.ending is None:
            before, start = policy.inference_count, time.perf_counter()
            action = policy.select_action(seen)
            thought = time.perf_counter()
            if policy.inference_count > before:
                latencies.append(1000 * (thought - start))
                routing = policy.routing()
                if routing is not None:
                    total = routing if total is None else total + routing
            if on_step:
                on_step(seen, routing, len(durations))
            acted = time.perf_counter()
            seen = stage.step(action)
            durations.append(1000 * (thought - start + time.perf_counter() - acted))
        if on_step:
            on_step(seen, routing, len(durations))
        return stage.ending.episode(job, tuple(latencies), tuple(durations), total)

    def close(self) -> None:
        """Switch everything on again, close the environment and give torch its threads back."""
        import torch

        if self.stage is not None:
            self.policy.disable_experts(())  # the policy may be somebody's live one, and a changed gate is no mask
            self.stage.close()
            self.stage = None
        torch.set_num_threads(self._threads)
