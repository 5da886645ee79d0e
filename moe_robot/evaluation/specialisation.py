"""Mutual information between what a token is about (task, phase, region) and its expert, and what chance would give.

Counts from few samples always share some information with any label. So every number stands beside the same number with
the labels shuffled: only what shuffling takes away may be called specialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 999

Shuffle = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Information:
    """Mutual information between a label and the expert, in bits.

    Attributes:
        bits: the plug-in estimate, from the counts as they are.
        null: its mean over shuffled labels: what chance gives with counts as few as these.
        null95: what 95 % of the shuffles stay below.
        limit: the entropy of the expert, and so the most that any label could tell.
        p: share of shuffles that give as much or more, the unshuffled one counted among them.
    """

    bits: float
    null: float
    null95: float
    limit: float
    p: float

    @property
    def beyond_chance(self) -> float:
        """Bits above the mean of the shuffles; may be a little below 0."""
        return self.bits - self.null


def mutual_information(table: np.ndarray) -> np.ndarray:
    """Bits shared by the row and the column of counts (..., A, E); 0 for an empty table."""
    total = np.maximum(table.sum(axis=(-2, -1), keepdims=True), 1e-300)
    joint = table / total
    apart = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log2(joint / apart), 0.0)
    return np.maximum(terms.sum(axis=(-2, -1)), 0.0)


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Entropy of counts (..., E) in bits; 0 where there are none."""
    share = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(np.where(share > 0, share * np.log2(share), 0.0).sum(axis=-1))


def information(
    counts_UCE: np.ndarray, label_U: np.ndarray, shuffle: Shuffle, permutations: int = PERMUTATIONS, seed: int = 0
) -> list[Information]:
    """How much each of C kinds of counts tells about a label.

    Args:
        counts_UCE: routes of each unit (a frame, a patch) to each expert, for C kinds (layers, modalities) at once.
        label_U: int labels from 0.
        shuffle: gives the labels in another order that would be as good if they meant nothing.
        permutations: how many such orders.
        seed: of the shuffles.
    """
    units, kinds, experts = counts_UCE.shape
    n_labels = int(label_U.max()) + 1 if units else 1
    flat = counts_UCE.reshape(units, kinds * experts).astype(np.float64)

    def bits(labels: np.ndarray) -> np.ndarray:
        member_UA = (labels[:, None] == np.arange(n_labels)).astype(np.float64)
        return mutual_information((member_UA.T @ flat).reshape(n_labels, kinds, experts).swapaxes(0, 1))

    rng = np.random.default_rng(seed)
    real = bits(label_U)
    shuffled = np.array([bits(shuffle(rng)) for _ in range(permutations)])
    limit = entropy_bits(counts_UCE.sum(axis=0))
    as_good = (shuffled >= real - 1e-12).sum(axis=0)
    return [
        Information(
            float(real[c]),
            float(shuffled[:, c].mean()),
            float(np.quantile(shuffled[:, c], 0.95)),
            float(limit[c]),
            float((as_good[c] + 1) / (permutations + 1)),
        )
        for c in range(kinds)
    ]


def between_blocks(label_U: np.ndarray, block_U: np.ndarray) -> Shuffle:
    """Hands the labels of whole blocks round: frames of one episode are alike and count as one sample of its task."""
    blocks, first, member = np.unique(block_U, return_index=True, return_inverse=True)
    label_of_block = label_U[first]
    return lambda rng: label_of_block[rng.permutation(len(blocks))][member]


def within_blocks(label_U: np.ndarray, block_U: np.ndarray) -> Shuffle:
    """Shuffles the labels inside every block: phases inside an episode, places inside a picture."""
    home = np.argsort(block_U, kind="stable")

    def shuffle(rng: np.random.Generator) -> np.ndarray:
        labels = np.empty_like(label_U)
        labels[home] = label_U[np.lexsort((rng.random(len(label_U)), block_U))]
        return labels

    return shuffle


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: with many tests, some would come out small by chance alone (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted = np.zeros(len(order))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted.tolist()
