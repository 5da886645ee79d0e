"""``moe-robot bench``: measures speed per second of processor time, which other work on the machine disturbs least."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from moe_robot.types import UserError


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot bench``."""

    what: tyro.conf.Positional[Literal["render", "env", "policy", "moe", "train", "data", "deploy", "paired", "serve"]]
    """render: camera pictures per CPU-second. env: control steps with all cameras per CPU-second, under the scripted
    expert. policy: latency of a new action chunk and training samples per second. moe: the mixture-of-experts layer
    beside its peers and the dense limit, in turn (its CUDA part has never been run on a GPU). train: several processes
    that train together beside as many runs side by side, and what saving states costs. data: writing and reading
    demonstrations. deploy: from picture to command over rosbridge and ROS 2, the safety gate, the control loop's
    jitter, and what an outage leaves behind. paired: success of a policy through `sim-node` and `deploy` in real time
    beside `eval`, on the same seeds. serve: throughput against latency of the policy server, for fleets of several
    sizes."""
    env: str = "pitstop"
    """Environment: short name or Gymnasium id."""
    env_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Options of the environment, for example objects=all render=full image_size=128."""
    seconds: float = 5.0
    """Seconds of processor time to measure for, after a warm-up; for moe at each size, on average over the layers; for
    deploy and serve seconds of real time in each window."""
    repeats: int = 3
    """Measure this often and report the median."""
    preset: str = "moe"
    """policy, train: the preset to measure."""
    processes: int = 2
    """train: processes of one thread each."""
    onnx: bool = False
    """policy: measure a chunk of the exported preset as well, run by onnxruntime on one thread."""
    threads: int = 0
    """policy: processor threads of a training step; 0 for one per core, 1 is what `train` uses by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """policy, moe: where the network runs; auto is the CPU for moe."""
    tokens: tuple[int, ...] = (1, 32, 256, 4096, 16384)
    """moe: numbers of tokens to measure, forward and forward with backward."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """moe: what weights and tokens are stored in."""
    width: int = 256
    """moe: token width."""
    hidden: int = 1024
    """moe: hidden width of one expert."""
    experts: int = 8
    """moe: number of experts."""
    experts_per_token: int = 2
    """moe: experts that a token wakes."""
    size: int = 96
    """data: height and width of the pictures."""
    peer: Path | None = None
    """data, deploy: a Python in whose environment lerobot, or roslibpy, is installed, to measure it in turn."""
    robots: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """serve: sizes of the fleet."""
    windows: tuple[float, ...] = (0, 5, 20)
    """serve: batch windows, ms; one by one is measured beside them."""
    rate: float = 20.0
    """serve: how often each robot asks for a plan, Hz."""
    checkpoint: Path = Path("assets/checkpoints/pitstop-demo-moe")
    """paired: the policy, a checkpoint folder or a training run."""
    out: Path | None = None
    """serve: write serve.json and serve.png into this folder. paired: folder for what is finished; the same command
    goes on from there."""
    tasks: str = "press_red,press_green,press_blue,pick_red_cube,pick_blue_cube"
    """paired: tasks with commas between; each is asked for in the sentence of its first episode."""
    episodes: int = 10
    """paired: of each task, on seeds from 100000 up."""
    transport: Literal["rclpy", "rosbridge"] = "rosbridge"
    """paired: the way between robot and policy."""
    contract: str = "pitstop"
    """paired: the robot's contract, a YAML file or a shipped one by its name."""
    json: bool = False
    """Print JSON in place of the table."""


def run(options: Options) -> int:
    """Measure and print."""
    if options.seconds <= 0 or options.repeats < 1 or options.threads < 0:
        given = f"--seconds {options.seconds} --repeats {options.repeats} --threads {options.threads}"
        raise UserError(f"{given}: expected positive numbers")
    if options.what == "moe":
        return _run_moe(options)
    if options.what == "deploy":
        return _run_deploy(options)
    if options.what == "serve":
        return _run_serve(options)
    if options.what == "paired":
        result = _run_paired(options)
    elif options.what == "data":
        from moe_robot.cli.bench.data import measure as measure_data

        result = measure_data(options.size, options.repeats, options.peer)
    elif options.what == "train":
        from moe_robot.cli.bench.train import measure as measure_train

        result = measure_train(options.preset, options.processes, options.seconds, options.repeats)
    elif options.what == "policy":
        from moe_robot.cli.bench.policy import measure

        result = measure(
            environment(options), options.preset, options.device, options.seconds, options.threads, options.onnx
        )
    else:
        result = {"render": bench_render, "env": bench_env}[options.what](options)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        width = max(map(len, result))
        for name, value in result.items():
            print(f"{name:<{width}}  {value:,.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    return 0


def _run_moe(options: Options) -> int:
    from moe_robot.cli.bench.moe import measure, table_lines

    def report(row: dict[str, Any]) -> None:
        if not options.json:
            print("\n".join(table_lines(row)), flush=True)

    shape = options.width, options.hidden, options.experts, options.experts_per_token
    result = measure(options.tokens, options.dtype, options.device, shape, options.seconds, report)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(*(f"{name} {value}" for name, value in result.items() if name != "rows" and value), sep="; ")
    return 0


def _run_deploy(options: Options) -> int:
    from moe_robot.cli.bench.deploy import measure, table_lines

    result = measure(options.seconds, options.repeats, options.peer)
    print(json.dumps(result, indent=1) if options.json else "\n".join(table_lines(result)))
    return 0


def _run_serve(options: Options) -> int:
    from moe_robot.cli.bench.serve import check, measure, write

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    check(options.robots, options.windows, options.rate)
    env, sizes = environment(options), sorted(set(options.robots))
    result = measure(env, sizes, options.windows, options.rate, options.seconds, options.repeats, say)
    if options.out:
        write(result, options.out)
    if options.json:
        print(json.dumps(result, indent=1))
    return 0


def _run_paired(options: Options) -> dict[str, Any]:
    from moe_robot.cli.bench.paired import measure

    if options.out is None or options.episodes < 1:
        raise UserError("bench paired needs --out FOLDER, and --episodes of 1 or more")
    return measure(
        options.checkpoint, options.out, options.tasks, options.episodes, options.transport, options.contract,
        lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip


def bench_render(options: Options) -> dict[str, Any]:
    """Pictures per CPU-second of each camera set: what the environment draws for one observation."""
    env = environment(options)
    inner = env.unwrapped
    if not hasattr(inner, "pictures"):
        raise UserError(
            f"environment {options.env} has no pictures(): bench render needs one of ours, for example pitstop"
        )
    try:
        env.reset(seed=0)
        count = len(inner.pictures())
        rate = count * _rate(inner.pictures, options)
        return {
            "frames_per_cpu_second": rate,
            "milliseconds_per_frame": 1e3 / rate,
            "pixels": "x".join(map(str, inner.image_size)),
            "cameras": ", ".join(inner.cameras),
            "renderer": inner.renderer,
            "load_average": os.getloadavg()[0],
        }
    finally:
        env.close()


def bench_env(options: Options) -> dict[str, Any]:
    """Control steps per CPU-second with all cameras, through episodes of all tasks in turn. Resets and the expert are
    left out of the step rate and reported apart."""
    env = environment(options)
    inner = env.unwrapped
    tasks = getattr(inner, "tasks", None)
    if not tasks or not hasattr(inner, "make_expert"):
        raise UserError(f"environment {options.env} has no scripted expert: bench env needs one, for example pitstop")
    spent = {"step": 0.0, "reset": 0.0, "expert": 0.0}
    counts = {"step": 0, "reset": 0, "expert": 0}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        outcome = call()
        spent[name] += time.process_time() - start
        counts[name] += 1
        return outcome

    def episode(seed: int) -> None:
        task = tasks[seed % len(tasks)]
        timed("reset", lambda: env.reset(seed=seed, options={"task": task}))
        expert, over = inner.make_expert(task), False
        while not over:
            action = timed("expert", expert.act)
            _, _, terminated, truncated, _ = timed("step", lambda action=action: env.step(action))
            over = terminated or truncated

    try:
        episode(0)
        seed, rates = 0, []
        for _ in range(options.repeats):
            before, steps = spent["step"], counts["step"]
            while spent["step"] - before < options.seconds or seed % len(tasks):
                episode(seed)
                seed += 1
            rates.append((counts["step"] - steps) / (spent["step"] - before))
        rate = sorted(rates)[len(rates) // 2]
        return {
            "steps_per_cpu_second": rate,
            "real_time_factor": rate / inner.control_hz,
            "milliseconds_per_step": 1e3 / rate,
            "milliseconds_per_reset": 1e3 * spent["reset"] / counts["reset"],
            "milliseconds_per_expert_action": 1e3 * spent["expert"] / counts["expert"],
            "episodes": seed,
            "control_hz": inner.control_hz,
            "cameras": ", ".join(getattr(inner, "cameras", ())),
            "renderer": getattr(inner, "renderer", "unknown"),
            "load_average": os.getloadavg()[0],
        }
    finally:
        env.close()


def environment(options: Options) -> Any:
    """The environment that the options name."""
    from moe_robot.registry import make_environment, parse_options

    return make_environment(options.env, **parse_options(options.env_options))


def _rate(call: Callable[[], Any], options: Options) -> float:
    """Calls per CPU-second: the median of several measurements."""
    call()
    rates = []
    for _ in range(options.repeats):
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < options.seconds:
            call()
            calls += 1
        rates.append(calls / spent)
    return sorted(rates)[len(rates) // 2]
