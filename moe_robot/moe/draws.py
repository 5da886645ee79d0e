"""Random numbers by place: a pure function of a key and of where a number is used.

So it does not matter how many processes share a batch, how it is padded, or on which device it lies.

Counter-based (Salmon et al. 2011), with the mixing steps of SplitMix64 (Steele, Lea and Flood 2014). Keys come from
torch's generator on the CPU, one per use, so a seed and a saved generator state fix them all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2^64 over the golden ratio, as a signed number; products wrap around
_MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1))


def fresh_key() -> int:
    """The key of one use. Processes whose generators are in step get the same."""
    return int(torch.randint(2**62, ()))


def uniform(key: int, place_T: Tensor, n: int) -> Tensor:
    """Numbers in (0, 1), float32 (T, n).

    Args:
        key: of :func:`fresh_key`.
        place_T: int64 (T,), who gets the row; equal places get equal rows.
        n: numbers for each.
    """
    column_N = torch.arange(1, n + 1, device=place_T.device)
    x_TN = _mixed((place_T + key) * _GOLDEN).unsqueeze(1) + column_N * _GOLDEN
    x_TN = _mixed(x_TN).bitwise_right_shift_(40).bitwise_and_(0xFFFFFF)  # 24 bits: exact in float32
    return x_TN.float().add_(0.5).mul_(2.0**-24)


def normal(key: int, place_T: Tensor, n: int) -> Tensor:
    """Standard normal numbers, float32 (T, n); see :func:`uniform`."""
    return torch.erfinv(uniform(key, place_T, n).mul_(2).sub_(1)).mul_(math.sqrt(2))


def _mixed(x: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of x. ``x`` is overwritten."""
    for shift, factor in _MIX:
        x ^= (x >> shift) & ((1 << (64 - shift)) - 1)  # torch's shift keeps the sign: cut it off
        x *= factor
    return x
