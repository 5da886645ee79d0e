"""Decides which frames a training step sees: a pure function of (seed, step), so that resuming is exact."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


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


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Two are kept: at an epoch's end a batch needs both neighbours."""
    return np.random.default_rng([seed, epoch]).permutation(n)
