"""The training loop: demonstrations in, a checkpoint out. It reads from top to bottom.

Every step is a function of the seed and the step number: the sampler is pure, and augmentation draws from torch's
generator, whose state is saved. So the same seed gives the same losses on a CPU, and a resumed run continues the
sequence of the uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moe_robot import __version__, registry
from moe_robot.data.durable import disk_errors
from moe_robot.data.loader import Dataset
from moe_robot.data.match import FeaturesDiffer, match
from moe_robot.data.mixture import Mixture, open_data
from moe_robot.data.selection import Split, parse_rename
from moe_robot.processes import interrupts_wait
from moe_robot.training.checkpoint import load_state, save_policy, save_state
from moe_robot.training.config import TrainConfig
from moe_robot.training.metrics import Metrics
from moe_robot.training.optimise import AveragedWeights, clip_gradients, make_optimiser, schedule
from moe_robot.types import Routing, UserError

LOG_EVERY = 20
PROBE_BATCHES = 4
"""Batches on which routing and validation loss are measured."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the caller's progress bar may show after a step."""

    step: int
    fraction: float
    loss: float
    samples_per_second: float


def train(config: TrainConfig, on_progress: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Train a policy and save it in ``config.out/checkpoint``. Returns the record that ``train.json`` holds.

    An interrupt (KeyboardInterrupt) saves the state first, then goes on to the caller.

    Raises:
        UserError: bad options, a data set that does not fit, or a loss that is no longer finite.
    """
    _check(config)
    writing = partial(disk_errors, config.out, kept="the last saved state is kept, --resume goes on from there")
    device = resolve_device(config.device)
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(config.seed)

    overrides = registry.parse_options(config.config) | ({"text": "none"} if config.no_text else {})
    policy_class = _preset_class(config.preset)
    begun = _upcycled(config.upcycle, overrides) if config.upcycle else None
    horizon = begun.config.chunk if begun else policy_class.preset_horizon(config.preset, **overrides)
    tasks = tuple(config.tasks.split(",")) if config.tasks else None
    dataset = _open(config, horizon, "train")
    if begun and (reason := begun.features.mismatch(dataset.features)):
        rows = match(begun.features, dataset.features)
        raise FeaturesDiffer(f"{config.upcycle} does not fit {config.data}: {reason}", rows)
    policy = begun or policy_class.from_preset(
        config.preset, dataset.features, dataset.statistics, dataset.tasks, _task_names(dataset), **overrides
    )
    policy = policy.to(device)
    if device.type == "cuda" and hasattr(policy, "stack_experts"):
        policy.stack_experts()
    with writing():
        config.out.mkdir(parents=True, exist_ok=True)
    optimiser = make_optimiser(policy, config.learning_rate, config.weight_decay, config.gate_rate)
    average = AveragedWeights(policy, config.ema)
    probe, probed = _probe_data(config, horizon, dataset)
    bf16 = uses_bf16(config.precision, device)

    step, elapsed = 0, 0.0
    fingerprint = _fingerprint(config, dataset.content_hash)
    if config.resume:
        state = load_state(config.out)
        _check_same_run(state["fingerprint"], fingerprint)
        policy.load_state_dict(state["model"])
        average.state = {name: tensor.to(device) for name, tensor in state["average"].items()}
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        step, elapsed, routing_step0 = state["step"], state["elapsed"], json.loads(state["routing_step0"])
    else:
        (config.out / "metrics.jsonl").unlink(missing_ok=True)
        routing_step0 = _probe(policy, probe, config, bf16)["routing"]

    def save() -> None:
        save_state(
            config.out,
            {
                "fingerprint": json.dumps(fingerprint),
                "model": policy.state_dict(),
                "average": average.state,
                "optimiser": optimiser.state_dict(),
                "rng": torch.get_rng_state(),
                "step": step,
                "elapsed": elapsed,
                "routing_step0": json.dumps(routing_step0),
            },
        )

    with writing(), Metrics(config.out, step) as metrics, interrupts_wait() as stop_if_interrupted:
        policy.train()
        last_saved = last_tick = time.monotonic()
        try:
            while (fraction := _fraction(config, step, elapsed)) < 1.0:
                for group in optimiser.param_groups:
                    group["lr"] = group["rate"] * config.learning_rate * schedule(step, fraction, config.warmup)
                batch = dataset.batch(dataset.draw(config.seed, step, config.batch_size))
                with autocast(device, bf16):
                    try:
                        loss, logs = policy(batch)
                    except ValueError as error:
                        raise UserError(
                            f"{error}; step {step}, the last saved state is kept in {config.out}"
                        ) from error
                if not torch.isfinite(loss):
                    raise UserError(
                        f"the loss is {loss.item()} at step {step}: the last saved state is kept in {config.out}; "
                        "try a smaller --learning-rate or --precision fp32"
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                norm = clip_gradients(policy.parameters(), config.clip)
                optimiser.step()
                events = policy.after_update(optimiser)
                step += 1
                average.update(policy, step)
                now = time.monotonic()
                elapsed, rate, last_tick = elapsed + now - last_tick, config.batch_size / (now - last_tick), now
                value = loss.item()
                if step % LOG_EVERY == 0 or step == 1:
                    numbers = {"loss": value, **logs, **_routing_numbers(policy.routing())}
                    metrics.write(step, {**numbers, "gradient_norm": norm, "samples_per_second": rate})
                for event in events:
                    metrics.tell(step, dataclasses.asdict(event))
                on_progress(Progress(step, _fraction(config, step, elapsed), value, rate))
                stop_if_interrupted()
                if now - last_saved > config.save_every:
                    save()
                    last_saved = time.monotonic()
                    last_tick = last_saved
        except KeyboardInterrupt:
            save()
            raise
        save()

    # The checkpoint is on disk before anything is measured on it.
    policy.load_state_dict(average.state)
    record = {
        "moe_robot": __version__,
        "preset": config.preset,
        "seed": config.seed,
        "steps": step,
        "minutes": elapsed / 60,
        "samples": step * config.batch_size,
        "batch_size": config.batch_size,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "dataset_sha256": dataset.content_hash,
        "episodes": len(dataset.episodes),
        "tasks": tasks or dataset.provenance.get("tasks"),
        "environment": dataset.provenance.get("environment"),
        "environment_options": dataset.provenance.get("options"),
        "routing": {"step0": routing_step0, "final": None},
        "complete": False,
    }
    with writing():
        folder = save_policy(config.out, policy.save_pretrained, record)
    final = _probe(policy, probe, config, bf16)
    record["routing"]["final"] = final["routing"]
    record[probed] = final["losses"]
    record["complete"] = True
    with writing():
        (folder / "train.json").write_text(json.dumps(record, indent=2))
    return record


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Asking for one that is not there is refused, never replaced."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in {"cpu", "cuda"}:
        raise registry.unknown("device", name, ("auto", "cpu", "cuda"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no CUDA device here: expected a GPU that torch can use; choose --device cpu")
    return torch.device(name)


def _preset_class(name: str) -> Any:
    presets = registry.presets()
    if name not in presets:
        raise registry.unknown("preset", name, presets)
    return presets[name]


def _upcycled(checkpoint: Path, overrides: Mapping[str, Any]) -> Any:
    dense = registry.load_policy(checkpoint)
    if not hasattr(dense, "upcycled"):
        raise UserError(
            f"{checkpoint} holds a {type(dense).__name__}, which cannot be upcycled: expected a dense policy"
        )
    return dense.upcycled(**overrides)


def _check(config: TrainConfig) -> None:
    if (config.steps is None) == (config.minutes is None):
        raise UserError("give the length of training as either --steps N or --minutes M")
    length = config.steps if config.steps is not None else config.minutes
    if length is not None and length <= 0:
        raise UserError(f"the length of training is {length}, expected more than 0")
    if config.gate_rate < 0:
        raise UserError(f"gate_rate is {config.gate_rate}, expected 0 (gates stay as they begin) or more")
    if config.batch_size < 1:
        raise UserError(f"--batch-size is {config.batch_size}, expected at least 1")
    if (config.out / "state.pt").exists() and not config.resume:
        raise UserError(f"{config.out} holds a run already: add --resume to go on with it, or choose another --out")


def _fraction(config: TrainConfig, step: int, elapsed: float) -> float:
    """How much of the run is done, in [0, 1]."""
    if config.steps is not None:
        return step / config.steps
    assert config.minutes is not None
    return elapsed / (60 * config.minutes)


def _fingerprint(config: TrainConfig, data_hash: str) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run. Its length may grow."""
    free = {"out", "data", "resume", "steps", "minutes", "threads", "device", "save_every", "upcycle", "stream"}
    fixed = {key: value for key, value in dataclasses.asdict(config).items() if key not in free}
    begun = None
    if config.upcycle:
        weights = registry.checkpoint_directory(config.upcycle) / "model.safetensors"
        begun = hashlib.sha256(weights.read_bytes()).hexdigest()
    return json.loads(json.dumps({**fixed, "data_sha256": data_hash, "upcycled_sha256": begun}))


def _check_same_run(saved: str, present: dict[str, Any]) -> None:
    for key, value in json.loads(saved).items():
        if present.get(key) != value:
            raise UserError(
                f"cannot resume: {key} was {value!r} in the saved run and is {present.get(key)!r} now; use the same"
            )


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network computes in bf16: as asked, or ``auto``: where the processor has it."""
    if precision == "auto":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return precision == "bf16"


def autocast(device: torch.device, bf16: bool) -> Any:
    """The context in which the network computes."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def _routing_numbers(routing: Routing | None) -> dict[str, float]:
    """What shows a gate drifting, collapsing or overflowing: for each modality the share of its routes that go to
    experts of its own role, and for each modality and expert the share of routes that a capacity dropped."""
    if routing is None:
        return {}
    own = {f"own_role_{modality}": roles.get(modality, 0.0) for modality, roles in routing.share().items()}
    return own | {f"drop_rate_{name}": rate for name, rate in routing.drop_rates().items()}


def _task_names(dataset: Any) -> tuple[str, ...]:
    """Names of the environment's tasks; none where the data set has only sentences."""
    names = dict.fromkeys(dataset.episodes.task)
    return () if set(names) == set(dataset.tasks) else tuple(names)


def _open(config: TrainConfig, horizon: int, split: Split) -> Dataset | Mixture:
    """The demonstrations as the options choose them."""
    return open_data(
        config.data,
        horizon,
        split,
        tasks=config.tasks.split(",") if config.tasks else None,
        episodes=config.episodes,
        cameras=config.cameras.split(",") if config.cameras else None,
        rename=parse_rename(config.rename),
        frames="stream" if config.stream else "cache",
    )


def _probe_data(config: TrainConfig, horizon: int, dataset: Any) -> tuple[Any, str]:
    """Held-out episodes to measure on, and what to call the result; training data where too few are held out."""
    try:
        held_out = _open(config, horizon, "validation")
    except UserError:
        return dataset, "training_probe"
    return (held_out, "validation") if len(held_out) >= config.batch_size else (dataset, "training_probe")


@torch.no_grad()
def _probe(policy: Any, dataset: Any, config: TrainConfig, bf16: bool) -> dict[str, Any]:
    """Routing shares and mean losses over a few fixed batches, in evaluation mode."""
    policy.eval()
    total, sums = None, {}
    for i in range(PROBE_BATCHES):
        batch = dataset.batch(dataset.draw(0, i, min(config.batch_size, len(dataset))))
        with autocast(policy.device, bf16):
            _, logs = policy(batch)
        for key, value in logs.items():
            sums[key] = sums.get(key, 0.0) + value / PROBE_BATCHES
        routing = policy.routing()
        total = routing if total is None or routing is None else total + routing
    policy.train()
    return {"routing": None if total is None else total.share(), "losses": sums}
