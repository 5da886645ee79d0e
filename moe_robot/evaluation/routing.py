"""The routing report: what the gate did on frames of demonstrations, as a plain dict (``routing.json``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from math import log
from operator import add
from typing import Any

import numpy as np

from moe_robot.evaluation.specialisation import Information, between_blocks, holm, information, within_blocks
from moe_robot.types import Routing, TokenRoutes

SCHEMA = 1
PHASES = ("first quarter", "second quarter", "third quarter", "last quarter")
COLD = 0.1
"""An expert is cold below this part of its fair share."""
COLD_MEANS = (
    f"cold: fewer routes than {COLD:.0%} of its fair share, which is what each expert of its role would get if all "
    "tokens of the modality of that name went to its experts evenly; idle: no routes, and no token of that modality"
)
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a demonstration and what the gate did with it.

    Attributes:
        task: the environment's name for it.
        phase: index into ``PHASES``, which quarter of the episode.
        episode: number of the episode in the data set.
        step: frame within the episode.
        sentence: the instruction.
        routing: of one inference on this frame alone.
        tokens: which token went where, per layer; empty for a policy that does not tell.
        images: camera -> uint8 (H, W, 3).
    """

    task: str
    phase: int
    episode: int
    step: int
    sentence: str
    routing: Routing
    tokens: tuple[TokenRoutes, ...]
    images: Mapping[str, np.ndarray]


def routing_json(
    frames: Sequence[Frame],
    step0: Mapping[str, Mapping[str, float]] | None,
    fresh: Sequence[Frame],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The report, schema 1.

    Every share is of routes. ``tasks`` and ``phases`` give each modality the same weight, however many tokens it has.

    Args:
        frames: at least one, all of one gate.
        step0: modality -> role -> share before training, from ``train.json``; None where it is not told.
        fresh: the same frames as an untrained policy of the same shape routes them; empty where there is none.
        about: of the checkpoint and the data, copied in front.
    """
    total = reduce(add, (frame.routing for frame in frames))
    report: dict[str, Any] = {
        "schema": SCHEMA,
        **about,
        "frames": len(frames),
        "episodes": len({frame.episode for frame in frames}),
        "modalities": total.modalities,
        "experts": total.experts,
        "roles": total.roles,
        "tasks": tuple(dict.fromkeys(frame.task for frame in frames)),
        "phases": PHASES,
        "cold_means": COLD_MEANS,
        **_numbers(frames),
        "role_share_at_step0": step0,
        "untrained": _numbers(fresh) if fresh else None,
    }
    return json.loads(json.dumps(report, allow_nan=False))  # what a reader of the file will get


def _numbers(frames: Sequence[Frame]) -> dict[str, Any]:
    total = reduce(add, (frame.routing for frame in frames))
    tasks = tuple(dict.fromkeys(frame.task for frame in frames))
    found = [*_labels(frames, tasks), *_regions(frames)]
    corrected = holm([item.p for _, item in found])
    return {
        "layers": [_layer(frames, total, layer, tasks) for layer in range(total.counts_LME.shape[0])],
        "information": [
            {
                **of,
                **asdict(item),
                "beyond_chance": item.beyond_chance,
                "p_holm": p_holm,
                "significant": p_holm < SIGNIFICANT,
            }
            for (of, item), p_holm in zip(found, corrected, strict=True)
        ],
        "role_share": total.share(),
    }


def fair_shares(routing: Routing, layer: int) -> list[float | None]:
    """Routes that each expert of a layer would get if its role's modality kept to its experts evenly; None when idle.

    A token makes at most one route to each expert, so a role with G experts gets ``min(K, G)`` routes of a token.
    """
    counts_ME, tokens_M = routing.counts_LME[layer], routing.tokens_LM[layer]
    k = counts_ME.sum() / tokens_M.sum() if tokens_M.any() else 1.0  # a policy that does not tell its tokens
    shares: list[float | None] = []
    for role in routing.roles:
        size = routing.roles.count(role)
        tokens = counts_ME[routing.modalities.index(role)].sum() / k if role in routing.modalities else 0
        shares.append(float(tokens * min(k, size) / size) if tokens else None)
    return shares


def _layer(frames: Sequence[Frame], total: Routing, layer: int, tasks: Sequence[str]) -> dict[str, Any]:
    counts_ME, dropped_ME = total.counts_LME[layer], total.dropped_LME[layer]
    counts_E, fair_E = counts_ME.sum(axis=0), fair_shares(total, layer)
    over_fair = [None if fair is None else float(n / fair) for n, fair in zip(counts_E, fair_E, strict=True)]

    def of_frames(choose: Callable[[Frame], bool]) -> dict[str, float]:
        chosen = [frame.routing.counts_LME[layer] for frame in frames if choose(frame)] or [np.zeros_like(counts_ME)]
        return _named(total.experts, _evenly_over_modalities(np.sum(chosen, axis=0)))

    return {
        "layer": layer + 1,
        "experts": {
            name: {
                "role": total.roles[e],
                "routes": int(counts_E[e]),
                "share": _ratio(counts_E[e], counts_E.sum()),
                "over_fair": over_fair[e],
                "first_choices": int(total.top_LME[layer, :, e].sum()),
                "drop_rate": _ratio(dropped_ME[:, e].sum(), counts_E[e]),
            }
            for e, name in enumerate(total.experts)
        },
        "modalities": {
            name: _modality(total, layer, m) for m, name in enumerate(total.modalities) if counts_ME[m].any()
        },
        "drop_rate": _ratio(dropped_ME.sum(), counts_E.sum()),
        "cold": [n for n, load in zip(total.experts, over_fair, strict=True) if load is not None and load < COLD],
        "idle": [total.experts[e] for e, load in enumerate(over_fair) if load is None and not counts_E[e]],
        "tasks": {task: of_frames(lambda frame, task=task: frame.task == task) for task in tasks},
        "phases": {name: of_frames(lambda frame, i=i: frame.phase == i) for i, name in enumerate(PHASES)},
    }


def _modality(total: Routing, layer: int, m: int) -> dict[str, Any]:
    counts_E, tokens = total.counts_LME[layer, m], int(total.tokens_LM[layer, m])
    nats = float(total.entropy_LM[layer, m] / tokens) if tokens else None
    most = log(len(total.experts))
    return {
        "tokens": tokens,
        "experts": _named(total.experts, counts_E / counts_E.sum()),
        "entropy_nats": nats,
        "entropy_of_log_experts": None if nats is None else (nats / most if most else 0.0),
        "drop_rate": _ratio(total.dropped_LME[layer, m].sum(), counts_E.sum()),
    }


def _labels(frames: Sequence[Frame], tasks: Sequence[str]) -> list[tuple[dict[str, Any], Information]]:
    """What the task and the phase of a frame tell about the experts of its tokens, per layer and modality."""
    routing = frames[0].routing
    layers, modalities, experts = routing.counts_LME.shape
    counts_FCE = np.stack([frame.routing.counts_LME for frame in frames]).reshape(-1, layers * modalities, experts)
    episode_F = np.array([frame.episode for frame in frames])
    task_F = np.array([tasks.index(frame.task) for frame in frames])
    phase_F = np.array([frame.phase for frame in frames])
    found: list[tuple[dict[str, Any], Information]] = []
    for what, label_F, shuffle in (
        ("task", task_F, between_blocks(task_F, episode_F)),
        ("phase", phase_F, within_blocks(phase_F, episode_F)),
    ):
        if len(set(label_F)) < 2:
            continue
        items = information(counts_FCE, label_F, shuffle)
        for c, item in enumerate(items):
            layer, m = divmod(c, modalities)
            if counts_FCE[:, c].any():
                found.append(({"label": what, "layer": layer + 1, "tokens": routing.modalities[m]}, item))
    return found


def _regions(frames: Sequence[Frame]) -> list[tuple[dict[str, Any], Information]]:
    """What a patch's camera, and its place in the picture, tell about its experts, per layer."""
    if not all(frame.tokens for frame in frames):
        return []
    n_experts = len(frames[0].routing.experts)
    cameras = [
        name for name in dict.fromkeys(label.camera for label in frames[0].tokens[0].labels if label.cell) if name
    ]
    found: list[tuple[dict[str, Any], Information]] = []
    for layer in range(len(frames[0].tokens)):
        ids = {camera: np.stack([_patches(frame.tokens[layer], camera) for frame in frames]) for camera in cameras}
        ids = {camera: ids_FPK for camera, ids_FPK in ids.items() if (ids_FPK >= 0).any()}
        if len(ids) > 1:
            number_FP = [np.full(ids_FPK.shape[:2], c) for c, ids_FPK in enumerate(ids.values())]
            item = _within_frames(np.concatenate(list(ids.values()), axis=1), np.hstack(number_FP), n_experts)
            found.append(({"label": "camera", "layer": layer + 1, "tokens": "patches"}, item))
        for camera, ids_FPK in ids.items():
            if ids_FPK.shape[1] > 1:
                place_FP = np.broadcast_to(np.arange(ids_FPK.shape[1]), ids_FPK.shape[:2])
                item = _within_frames(ids_FPK, place_FP, n_experts)
                found.append(({"label": "region", "layer": layer + 1, "tokens": f"{camera} patches"}, item))
    return found


def _within_frames(ids_FPK: np.ndarray, label_FP: np.ndarray, n_experts: int) -> Information:
    """What the label of a patch tells; the null shuffles the labels inside each frame."""
    counts_FPE = (ids_FPK[..., None] == np.arange(n_experts)).sum(axis=2)
    counts_UCE = counts_FPE.reshape(-1, 1, n_experts)
    return information(counts_UCE, label_FP.reshape(-1), lambda rng: rng.permuted(label_FP, axis=1).reshape(-1))[0]


def _patches(routes: TokenRoutes, camera: str) -> np.ndarray:
    """Experts (P, K) of a camera's patches on a frame."""
    places = [n for n, label in enumerate(routes.labels) if label.camera == camera and label.cell is not None]
    return routes.ids_BNK[0, places]


def _evenly_over_modalities(counts_ME: np.ndarray) -> np.ndarray:
    """Share of each expert (E,), the mean over the modalities that have tokens; zeros when none has."""
    present = counts_ME[counts_ME.any(axis=1)]
    return (present / present.sum(axis=1, keepdims=True)).mean(axis=0) if len(present) else np.zeros(counts_ME.shape[1])


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0
