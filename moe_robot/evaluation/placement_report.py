"""The placement report: what a proposed placement of experts costs beside the usual one, as a plain dict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_robot.evaluation.placement import (
    LayerRoutes,
    Outcome,
    Steps,
    contiguous,
    draw_steps,
    lower_bound_S,
    play,
    propose,
)
from moe_robot.evaluation.routing import Frame

SCHEMA = 1
STEPS = 200
"""Steps that are drawn from each half of the frames."""


def layer_routes(frames: Sequence[Frame]) -> list[LayerRoutes]:
    """The recorded routes of all frames, one per layer. Frames must tell which token went where."""
    found = []
    for layer in range(len(frames[0].tokens)):
        of_frame = [frame.tokens[layer].ids_BNK[0] for frame in frames]
        of_frame = [ids_NK[(ids_NK >= 0).any(axis=1)] for ids_NK in of_frame]  # what takes no part here
        frame_T = np.repeat(np.arange(len(frames)), [len(ids_NK) for ids_NK in of_frame])
        found.append(LayerRoutes(frame_T, np.concatenate(of_frame)))
    return found


def placement_json(
    frames: Sequence[Frame], devices: int, batch: int, copies: int, seed: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The report, schema 1.

    Placements are chosen on every second frame and judged on the others, so that what is told is no memory of what was
    seen. ``skew`` is the busiest device's routes over the mean of all in a step; ``time`` that of all layers together,
    which is how much longer the experts take than if every step were even; ``leaving`` the share of routes that leave
    the device of their token, ``sends`` transfers per token, which goes once to each device that it needs.

    Args:
        frames: at least two, of one gate; their tokens told.
        devices: N.
        batch: frames of a step; fewer where half of the frames are fewer.
        copies: experts that the devices hold twice or more, in all, for the row "with copies"; 0 for no such row.
        seed: of the drawing.
        about: of the checkpoint and the data, copied in front.
    """
    routing, layers = frames[0].routing, layer_routes(frames)
    experts, size = len(routing.experts), min(batch, len(frames) // 2)
    seen, judged = (
        draw_steps(layers, np.arange(half, len(frames), 2), experts, devices, size, STEPS, seed) for half in (0, 1)
    )
    placements = {
        "contiguous": [contiguous(experts, devices)] * len(layers),
        "proposed": [propose(steps, devices) for steps in seen],
        **({"with copies": [propose(steps, devices, copies) for steps in seen]} if copies else {}),
    }
    report = {
        "schema": SCHEMA,
        **about,
        "frames": len(frames),
        "devices": devices,
        "batch": size,
        "steps": STEPS,
        "copies": copies,
        "experts": routing.experts,
        "roles": routing.roles,
        "layers": [
            {
                "layer": i + 1,
                "load": [float(load) for load in steps.loads_SE().sum(axis=0) / max(1, steps.loads_SE().sum())],
                "lower_bound": _bound(steps, devices),
                "placements": {
                    name: _told(play(steps, of_layer[i]), of_layer[i], routing.experts, len(steps.ids_TK))
                    for name, of_layer in placements.items()
                },
            }
            for i, steps in enumerate(judged)
        ],
        "whole": {
            name: _whole([play(steps, here) for steps, here in zip(judged, of_layer, strict=True)], judged)
            for name, of_layer in placements.items()
        },
        "lower_bound_time": float(
            sum(lower_bound_S(steps, devices).sum() for steps in judged)
            / sum(steps.loads_SE().sum() / devices for steps in judged)
        ),
    }
    return json.loads(json.dumps(report, allow_nan=False))


def _told(outcome: Outcome, here_EN: np.ndarray, experts: Sequence[str], tokens: int) -> dict[str, Any]:
    skew_S = outcome.skew_S()
    return {
        "devices": [[experts[int(e)] for e in np.flatnonzero(here_E)] for here_E in here_EN.T],
        "load": [float(load) for load in outcome.load_SN.sum(axis=0) / outcome.routes],
        "skew_mean": float(skew_S.mean()),
        "skew_p95": float(np.quantile(skew_S, 0.95)),
        "skew_max": float(skew_S.max()),
        "leaving": outcome.leaving / outcome.routes,
        "sends": outcome.sends / tokens,
    }


def _bound(steps: Steps, devices: int) -> float:
    """Mean over steps of the least possible skew without copies."""
    routes_S = steps.loads_SE().sum(axis=1)
    return float((lower_bound_S(steps, devices)[routes_S > 0] * devices / routes_S[routes_S > 0]).mean())


def _whole(outcomes: Sequence[Outcome], judged: Sequence[Steps]) -> dict[str, float]:
    routes = sum(outcome.routes for outcome in outcomes)
    return {
        "time": float(
            sum(o.load_SN.max(axis=1).sum() for o in outcomes) / sum(o.load_SN.mean(axis=1).sum() for o in outcomes)
        ),
        "leaving": sum(outcome.leaving for outcome in outcomes) / routes,
        "sends": sum(outcome.sends for outcome in outcomes) / sum(len(steps.ids_TK) for steps in judged),
    }
