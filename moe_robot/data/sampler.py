"""Decides which frames a training step sees: a pure function of (seed, step), so that resuming is exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

BLOCK = 1000
"""Within so many frames of a mixture's stream every data set has given its share."""


def batch_indices(seed: int, step: int, batch_size: int, n: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """The ``batch_size`` frame indices, int64 in [0, n), that ``rank`` of ``world_size`` trains on at ``step``.

    The frames of all steps form one endless stream: a fresh permutation of 0..n-1 per epoch, one after the other, cut
    into global batches of ``batch_size * world_size``; a batch may reach over an epoch's end, so no frame is ever
    dropped. Ranks take consecutive slices of the global batch: W ranks with batch B see together exactly what one
    rank sees with batch W*B, and no frame is seen by two ranks in one epoch.
    """
    if not (0 <= rank < world_size and batch_size > 0 and n > 0 and step >= 0):
        raise ValueError(f"bad sampler arguments: {rank=} {world_size=} {batch_size=} {n=} {step=}")
    first = (step * world_size + rank) * batch_size
    positions = np.arange(first, first + batch_size)
    epochs, offsets = np.divmod(positions, n)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = _permutation(seed, int(epoch), n)[offsets[chosen]]
    return indices


def mixture_indices(
    seed: int,
    step: int,
    batch_size: int,
    sizes: Sequence[int],
    weights: Sequence[float],
    rank: int = 0,
    world_size: int = 1,
) -> np.ndarray:
    """As :func:`batch_indices`, for several data sets of ``sizes`` frames laid one after the other.

    Of every :data:`BLOCK` frames of the stream each data set gives its share by ``weights``, rounded to whole frames
    and never none, in an order drawn anew for each block. A data set itself is gone through in permutations, as ever.
    """
    if not (0 <= rank < world_size and batch_size > 0 and min(sizes) > 0 and step >= 0 and min(weights) > 0):
        raise ValueError(f"bad sampler arguments: {rank=} {world_size=} {batch_size=} {sizes=} {weights=} {step=}")
    quotas, starts = block_quotas(tuple(weights)), np.concatenate([[0], np.cumsum(sizes)])
    first = (step * world_size + rank) * batch_size
    indices = np.empty(batch_size, dtype=np.int64)
    for i, (block, offset) in enumerate(zip(*np.divmod(np.arange(first, first + batch_size), BLOCK), strict=True)):
        parts, places = _block(seed, int(block), quotas)
        part = int(parts[offset])
        epoch, place = divmod(int(block) * quotas[part] + int(places[offset]), sizes[part])
        indices[i] = starts[part] + _permutation(seed, epoch, sizes[part], part + 1)[place]
    return indices


@lru_cache(maxsize=8)
def block_quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Frames of a block that each data set gives: they add up to :data:`BLOCK`."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * BLOCK
    quotas = np.maximum(1, np.floor(exact).astype(int))
    while (rest := BLOCK - quotas.sum()) != 0:  # the one that is furthest from its share gives or takes one
        quotas[np.argmax((exact - quotas) * np.sign(rest) - 1e9 * (quotas + np.sign(rest) < 1))] += np.sign(rest)
    return tuple(map(int, quotas))


@lru_cache(maxsize=4)
def _block(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which data set each frame of a block comes from, and the how-manieth of that data set in the block it is."""
    parts = np.random.default_rng([seed, block, BLOCK]).permutation(np.repeat(np.arange(len(quotas)), quotas))
    places = np.empty_like(parts)
    for part, quota in enumerate(quotas):
        places[parts == part] = np.arange(quota)
    return parts, places


@lru_cache(maxsize=32)
def _permutation(seed: int, epoch: int, n: int, part: int = 0) -> np.ndarray:
    """Several are kept: at an epoch's end a batch needs both neighbours, of every data set of a mixture."""
    return np.random.default_rng([seed, epoch, part] if part else [seed, epoch]).permutation(n)
