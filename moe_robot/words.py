"""Splits instructions into words and numbers them: the same where a policy trains and where its exported graph runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

PADDING, UNKNOWN = 0, 1
"""Numbers that stand for no word at all, and for every word that is not in the vocabulary."""
LONGEST = 64
"""Words of a sentence that are read; the rest is cut off."""


def words(sentence: str) -> list[str]:
    """The words of a sentence: lower case, punctuation dropped."""
    return re.findall(r"[\w'-]+", sentence.lower())


def number_words(sentences: Sequence[str], vocabulary: Mapping[str, int]) -> np.ndarray:
    """The number of each word, int64 (B, W), and ``PADDING`` after a sentence's last one.

    W is 1 or more, even if no sentence has a word.
    """
    rows = [[vocabulary.get(word, UNKNOWN) for word in words(sentence)[:LONGEST]] for sentence in sentences]
    ids_BW = np.full((len(rows), max([1, *map(len, rows)])), PADDING, dtype=np.int64)
    for row, ids in zip(ids_BW, rows, strict=True):
        row[: len(ids)] = ids
    return ids_BW
