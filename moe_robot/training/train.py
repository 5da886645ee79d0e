"""The training loop: demonstrations in, a checkpoint out. It reads from top to bottom.

Every step is a function of the seed and the step number: the sampler is pure, and augmentation draws from torch's
generator, whose state is saved. So the same seed gives the same losses on a CPU, however many processes share a batch
(within rounding), and a resumed run continues the sequence of the uninterrupted one.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe_robot import __version__
from moe_robot.data.durable import disk_errors
from moe_robot.moe import ALONE, share
from moe_robot.training import join
from moe_robot.training import state as states
from moe_robot.training.checkpoint import newest_state, save_policy
from moe_robot.training.config import TrainConfig
from moe_robot.training.device import autocast, resolve_device, uses_bf16
from moe_robot.training.measure import probe, routing_numbers
from moe_robot.training.metrics import Metrics
from moe_robot.training.optimise import AveragedWeights, make_optimiser, schedule
from moe_robot.training.prepare import Beginning, begin, check, check_same_run, fingerprint
from moe_robot.training.team import Team
from moe_robot.types import UserError

LOG_EVERY = 20


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the caller's progress bar may show after a step."""

    step: int
    fraction: float
    loss: float
    samples_per_second: float


def train(config: TrainConfig, on_progress: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Train a policy and save it in ``config.out/checkpoint``. Returns the record that ``train.json`` holds.

    Under torchrun all processes train together; the record is then that of the first, and empty for the others. An
    interrupt (KeyboardInterrupt) saves the state first, then goes on to the caller.

    Raises:
        UserError: bad options, a data set that does not fit, a loss that is no longer finite, or a lost process.
    """
    if join.is_restart() and newest_state(config.out) is not None:
        config = dataclasses.replace(config, resume=True)
    device = join.local_device(resolve_device(config.device))
    with join.joined(device) as team:
        check(config)
        join.check_division(config, team.ranks.size)
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        torch.manual_seed(config.seed)
        with join.all_answer(team, config.out):
            with join.in_turn(team):
                beginning = begin(config)
            join.connect(team, device, config.expert_parallel)
            return _Run(config, team, device, beginning).go(on_progress)


class _Run:
    """One run, from its first step or its latest state to the checkpoint."""

    def __init__(self, config: TrainConfig, team: Team, device: torch.device, beginning: Beginning) -> None:
        self.config, self.team, self.device = config, team, device
        self.step, self.elapsed = 0, 0.0
        self.dataset, self.probed = beginning.dataset, beginning
        self.policy = policy = beginning.policy.to(device)
        if device.type == "cuda" and hasattr(policy, "stack_experts"):
            policy.stack_experts()
        if config.precision == "fp64":
            policy.double()
        self.bf16 = uses_bf16(config.precision, device)
        self.writing = partial(
            disk_errors, config.out, kept="the last saved state is kept, --resume goes on from there"
        )
        self.fingerprint = fingerprint(config, self.dataset.content_hash)
        self.routing_step0 = None if config.resume else probe(policy, self.probed.probe, config, self.bf16)["routing"]
        self.whole = copy.deepcopy(policy).cpu() if team.leads and config.expert_parallel > 1 else policy  # for the end
        team.adopt(policy)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(policy, config.learning_rate, config.weight_decay, config.gate_rate)
        self.average = AveragedWeights(policy, config.ema)
        with self.writing():
            config.out.mkdir(parents=True, exist_ok=True)
            self.states = states.States(config.out, config.keep, team.leads, team.saving)
        if config.resume:
            self._restore()
        elif team.leads:
            (config.out / "metrics.jsonl").unlink(missing_ok=True)

    def go(self, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
        """Train to the end; gives the record, in the first process of the team."""
        config, team = self.config, self.team
        with self.writing(), join.endings_are_agreed(team) as told:
            metrics = Metrics(config.out, self.step) if team.leads else None
            try:
                self.policy.train()
                last_wish = last_tick = time.monotonic()
                clock, _, stop = team.agree(self.elapsed, False, False)
                while not stop and self.fraction < 1.0:
                    loss, logs, norm = self._update()
                    events = self.policy.after_update(self.optimiser)
                    self.step += 1
                    self.average.update(self.policy, self.step)
                    now = time.monotonic()
                    rate, since, last_tick = config.batch_size / (now - last_tick), now - last_tick, now
                    if self.step % LOG_EVERY == 0 or self.step == 1:
                        routing = routing_numbers(team.total(self.policy.routing()))
                        numbers = {"loss": loss, **logs, **routing, "gradient_norm": norm}
                        if metrics:
                            metrics.write(self.step, {**numbers, "samples_per_second": rate})
                    if metrics:
                        for event in events:
                            metrics.tell(self.step, dataclasses.asdict(event))
                    interrupted = _tell(on_progress, Progress(self.step, self.fraction, loss, rate))
                    clock += since
                    wish = now - last_wish > config.save_every
                    last_wish = now if wish else last_wish  # in a team the answer comes a step later
                    self.elapsed, due, stop = team.agree(clock, wish, interrupted or told())
                    if due and not stop:
                        self._save()
                        last_wish = last_tick = time.monotonic()
                team.settle()
            except BaseException:
                self.states.settle()  # its thread must not outlive the process groups
                raise
            finally:
                if metrics:
                    metrics.close()
            self._save()
            self.states.wait()
        if stop:
            raise KeyboardInterrupt
        return self._finish() if team.leads else {}

    @property
    def fraction(self) -> float:
        """How much of the run is done, in [0, 1]."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        assert self.config.minutes is not None
        return self.elapsed / (60 * self.config.minutes)

    def _update(self) -> tuple[float, Mapping[str, float], float]:
        """One optimiser step; gives the loss, numbers for the log, and the norm of the gradient."""
        config, team, parts = self.config, self.team, self.config.accumulate
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * config.learning_rate * schedule(self.step, self.fraction, config.warmup)
        self.optimiser.zero_grad(set_to_none=True)
        told = []
        for part in range(parts):
            size = config.batch_size // (parts * team.ranks.size)
            rows = self.dataset.draw(config.seed, self.step * parts + part, size, team.ranks.rank, team.ranks.size)
            with team.part(last=part == parts - 1):
                loss, logs = self._forward(self.dataset.batch(rows))
                told.append(team.begin_mean({"loss": loss.item(), **logs}))  # on its way during the backward pass
                (loss / parts).backward()
        means = [of_part() for of_part in told]
        logs = {name: statistics.fmean(of_part[name] for of_part in means) for name in means[0]}
        loss = logs.pop("loss")
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {self.step}: the last saved state is kept in {config.out}; "
                "try a smaller --learning-rate or --precision fp32"
            )
        team.average_experts()
        norm = team.clip(self.parameters, config.clip)
        self.optimiser.step()
        return loss, logs, norm

    def _forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, float]]:
        with autocast(self.device, self.bf16):
            try:
                return self.team.model(batch)
            except ValueError as error:
                kept = f"the last saved state is kept in {self.config.out}"
                raise UserError(f"{error}; step {self.step}, {kept}") from error

    def _save(self) -> None:
        values = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "elapsed": self.elapsed,
            "routing_step0": self.routing_step0,
        }
        self.states.save(self.step, states.pack(self.policy, self.average, self.optimiser), values)

    def _restore(self) -> None:
        tensors, values = states.load(self.config.out, states.wanted_by(self.policy))
        check_same_run(values["fingerprint"], self.fingerprint)
        states.unpack(tensors, self.policy, self.average, self.optimiser)
        self.step, self.elapsed, self.routing_step0 = values["step"], values["elapsed"], values["routing_step0"]
        self.states.saved = self.step

    def _finish(self) -> dict[str, Any]:
        """Write the policy, then measure it: it is on disk before anything is measured."""
        config, dataset = self.config, self.dataset
        policy, average = self.whole, self.average.state
        if policy is not self.policy:  # the other experts are in the state that was just saved
            tensors, _ = states.load(config.out, lambda name: name.startswith("average/"))
            average = {name.removeprefix("average/"): tensor for name, tensor in tensors.items()}
            policy.to(self.device)
        share(policy, ALONE)
        policy.load_state_dict(average)
        record: dict[str, Any] = {
            "moe_robot": __version__,
            "preset": self.probed.preset,
            "seed": config.seed,
            "steps": self.step,
            "minutes": self.elapsed / 60,
            "samples": self.step * config.batch_size,
            "batch_size": config.batch_size,
            "processes": self.team.ranks.size,
            "parameters": sum(p.numel() for p in policy.parameters()),
            **{name: self.fingerprint[name] for name in ("upcycled_sha256", "finetuned_sha256")},
            "dataset_sha256": dataset.content_hash,
            "episodes": len(dataset.episodes),
            "tasks": tuple(config.tasks.split(",")) if config.tasks else dataset.provenance.get("tasks"),
            "environment": dataset.provenance.get("environment"),
            "environment_options": dataset.provenance.get("options"),
            "routing": {"step0": self.routing_step0, "final": None},
            "complete": False,
        }
        with self.writing():
            folder = save_policy(config.out, policy.save_pretrained, record)
        final = probe(policy, self.probed.probe, config, self.bf16)
        record["routing"]["final"] = final["routing"]
        record[self.probed.probed] = final["losses"]
        record["complete"] = True
        with self.writing():
            (folder / "train.json").write_text(json.dumps(record, indent=2))
        return record


def _tell(on_progress: Callable[[Progress], None], progress: Progress) -> bool:
    """Whether the listener wants the run to stop: it raised KeyboardInterrupt."""
    try:
        on_progress(progress)
    except KeyboardInterrupt:
        return True
    return False
