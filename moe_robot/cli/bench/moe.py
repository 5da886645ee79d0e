"""``moe-robot bench moe``: the mixture-of-experts layer beside its peers and beside the dense limit, in turn.

All layers are called round-robin in one process, so that what disturbs the machine disturbs them alike, and ratios are
of medians over rounds with a bootstrap interval. On a CPU processor time counts. The CUDA part (events in place of
processor time, forward without host synchronisation, batch 1 in a CUDA graph) was written without a GPU at hand and has
never been run on one.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moe_robot.types import UserError

SHORTEST = 5e-3
"""Seconds of one timing: quick calls are repeated until they fill it."""
TOO_SLOW, TOO_LARGE = 30, 4e9
"""A peer this many times slower than the limit, or in need of so many bytes of scratch, is left out at that size."""
MOST_ROUNDS, FEWEST_ROUNDS = 200, 5


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians with its 95 % bootstrap interval over rounds."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, mine: Sequence[float], theirs: Sequence[float], resamples: int = 2000) -> Ratio:
        """Rounds are resampled in pairs: what disturbed a round disturbed both."""
        a, b = np.asarray(mine), np.asarray(theirs)
        picks = np.random.default_rng(0).integers(0, len(a), size=(resamples, len(a)))
        ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
        low, high = np.quantile(ratios, (0.025, 0.975))
        return cls(float(np.median(a) / np.median(b)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


def measure(
    tokens: Sequence[int],
    dtype_name: str,
    device_name: str,
    shape_numbers: tuple[int, int, int, int],
    seconds: float,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Every size, forward and forward+backward, on one thread.

    Args:
        tokens: the sizes T.
        dtype_name: "float32" or "bfloat16".
        device_name: "cpu", "cuda", or "auto" for the CPU.
        shape_numbers: token width, hidden width of an expert, experts, experts per token.
        seconds: to spend on each layer at each size; large sizes take longer.
        report: called with each row as soon as it is there.
    """
    import torch

    from moe_robot.cli.bench.moe_peers import LIMIT, SEPARATE, STACKED, Shape, contenders
    from moe_robot.training.train import resolve_device

    shape = Shape(*shape_numbers)
    for name, number in asdict(shape).items():
        if number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number}: expected a positive number")
    if shape.experts_per_token > shape.experts:
        raise UserError(f"--experts-per-token {shape.experts_per_token}: expected 1 to {shape.experts} (--experts)")
    if not tokens or min(tokens) < 1:
        raise UserError("--tokens: expected positive numbers, for example --tokens 1 32 256")
    device, dtype = resolve_device("cpu" if device_name == "auto" else device_name), getattr(torch, dtype_name)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers, missing = contenders(shape)
    for layer in layers.values():
        layer.module.to(device, dtype)
    rows = []
    for n_tokens in tokens:
        pool_PD = torch.randn(n_tokens if n_tokens == 1 else 2 * n_tokens, shape.width, device=device, dtype=dtype)
        for backward in (False, True):
            # ours is the form in use: on a CPU policies are trained with experts apart, and act with them stacked
            ours = (SEPARATE, STACKED) if backward and device.type == "cpu" else (STACKED, SEPARATE)
            notes, calls = {}, {}
            for name, layer in layers.items():
                if layer.extra_bytes(n_tokens) > TOO_LARGE:
                    notes[name] = f"left out: takes about {layer.extra_bytes(n_tokens) / 1e9:.0f} GB of scratch memory"
                    continue
                layer.module.train(backward)
                call = _call(layer, pool_PD, n_tokens, backward)
                fault = None if name in (LIMIT, *ours) else _fault(call)
                if fault is None:
                    calls[name] = call
                else:
                    notes[name] = f"left out: does not run in {dtype_name} ({fault})"
            times, slow = _alternate(calls, LIMIT, seconds, device.type)
            rows.append(_row(n_tokens, backward, times, {**missing, **notes, **slow}, LIMIT, ours))
            report(rows[-1])
    return {
        "rows": rows,
        "width": shape.width,
        "hidden": shape.hidden,
        "experts": shape.experts,
        "experts_per_token": shape.experts_per_token,
        "dtype": dtype_name,
        "device": str(device),
        "threads": 1,
        "cuda_checks": _cuda_checks(layers[STACKED], torch.randn(1, shape.width, device=device, dtype=dtype))
        if device.type == "cuda"
        else None,
        "versions": _versions(),
        "load_average": os.getloadavg()[0],
    }


def table_lines(row: dict[str, Any]) -> list[str]:
    """The lines of a table for one row of :func:`measure`."""
    over_best = "no peer was measured"
    if row["best_peer"]:
        over_best = f"{Ratio(**row['over_best_peer'])} of the best peer, {row['best_peer']}"
    lines = [
        f"T {row['tokens']}, {row['pass']}: {row['ours']} {row['ours_ms']:.3f} ms "
        f"({row['ours_wall_ms']:.3f} on the wall), "
        f"{Ratio(**row['over_limit'])} of the limit, {over_best}"
    ]
    ratios = {name: str(Ratio(**ratio)) for name, ratio in row["over_limit_of"].items()}
    return lines + [f"    {name:<24} {text}" for name, text in {**ratios, **row["notes"]}.items()]


def _call(layer: Any, pool_PD: Any, n_tokens: int, backward: bool) -> Callable[[], None]:
    """One step of a layer: forward without gradients, or forward and backward with fresh gradients.

    Every call takes other neighbours from the pool, the same ones for each layer: how many tokens an expert gets is
    never the same twice in use, and some libraries are slow with numbers that they have not met.
    """
    import torch

    gradient_TD, parameters = torch.randn_like(pool_PD[:n_tokens]), list(layer.module.parameters())
    draws = random.Random(0)

    def tokens() -> Any:
        start = draws.randint(0, len(pool_PD) - n_tokens)
        return pool_PD[start : start + n_tokens]

    def forward() -> None:
        with torch.no_grad():
            layer.call(tokens())

    def both() -> None:
        for parameter in parameters:  # as an optimiser does: looking for them in the modules is no work of the layer
            parameter.grad = None
        layer.call(tokens().detach().requires_grad_()).backward(gradient_TD)

    return both if backward else forward


def _fault(call: Callable[[], None]) -> str | None:
    """Why a peer does not run, in one line; None if it does. Not every peer takes every number format."""
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _alternate(
    calls: dict[str, Callable[[], None]], limit: str, seconds: float, device_type: str
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """(device or processor seconds, wall seconds) of one call, per round, and who was left out as too slow."""
    clock = _cuda_timing if device_type == "cuda" else _processor_timing
    repeats, left_out, longest = {}, {}, float("inf")
    for name in sorted(calls, key=lambda name: name != limit):  # the limit first: the others are held against it
        clock(calls[name], 1)
        once, _ = clock(calls[name], 1)
        repeats[name] = max(1, int(SHORTEST / max(once, 1e-6)))
        if name == limit:
            longest = TOO_SLOW * once
        elif once > longest:
            left_out[name] = f"left out: one call took {once / longest * TOO_SLOW:.0f} times as long as the limit's"
            del repeats[name]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls if name in repeats}
    while len(times[limit]) < MOST_ROUNDS:
        for name, rows in times.items():
            rows.append(clock(calls[name], repeats[name]))
        spent = sum(used * repeats[name] for name, rows in times.items() for used, _ in rows)
        if len(times[limit]) >= FEWEST_ROUNDS and spent > seconds * len(times):
            break
    return times, left_out


def _processor_timing(call: Callable[[], None], repeats: int) -> tuple[float, float]:
    used, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.process_time() - used) / repeats, (time.perf_counter() - wall) / repeats


def _cuda_timing(call: Callable[[], None], repeats: int) -> tuple[float, float]:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats, (time.perf_counter() - wall) / repeats


def _row(
    n_tokens: int,
    backward: bool,
    times: dict[str, list[tuple[float, float]]],
    notes: dict[str, str],
    limit: str,
    ours: Sequence[str],
) -> dict[str, Any]:
    """The ratios of one size. The best peer is the one with the lowest median; our own forms are no peers."""
    main, *others = ours
    used = {name: [use for use, _ in rows] for name, rows in times.items()}
    peers = [name for name in used if name not in (*ours, limit)]
    best = min(peers, key=lambda name: float(np.median(used[name])), default=None)
    return {
        "tokens": n_tokens,
        "pass": "forward+backward" if backward else "forward",
        "ours": main,
        "ours_ms": 1e3 * float(np.median(used[main])),
        "ours_wall_ms": 1e3 * float(np.median([wall for _, wall in times[main]])),
        "limit_ms": 1e3 * float(np.median(used[limit])),
        "over_limit": asdict(Ratio.of(used[main], used[limit])),
        "best_peer": best,
        "over_best_peer": asdict(Ratio.of(used[main], used[best])) if best else None,
        "over_limit_of": {name: asdict(Ratio.of(used[name], used[limit])) for name in (*others, *peers)},
        "notes": notes,
        "rounds": len(used[limit]),
    }


def _cuda_checks(layer: Any, x_1D: Any) -> dict[str, str]:
    """Whether forward runs without waiting for the GPU, and whether one token runs in a CUDA graph as outside it."""
    import torch

    call, found = layer.call, {}
    call(x_1D)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            call(x_1D.expand(64, -1).contiguous())
        found["forward without host synchronisation"] = "yes"
    except RuntimeError as error:
        found["forward without host synchronisation"] = f"no: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        expected_1D, graph = call(x_1D), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y_1D = call(x_1D)
        graph.replay()
        torch.cuda.synchronize()
    found["one token in a CUDA graph"] = "equal" if torch.allclose(y_1D, expected_1D) else "differs"
    return found


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "st-moe-pytorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
