"""Runs a bank of experts as grouped matrix products: one launch for all experts, and nothing asked of the device.

This is the path on GPUs in bf16 and the one that ``torch.export`` and ``torch.compile`` can capture, since no shape in
it depends on where the gate sent the tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_robot.moe.experts import Activation, activate, compute_dtype


def is_available() -> bool:
    """Whether this torch has the grouped product (2.10 and later)."""
    return hasattr(F, "grouped_mm")


def run_grouped(matrices: tuple[Tensor, Tensor], activation: Activation, x_RD: Tensor, counts_E: Tensor) -> Tensor:
    """Rows in expert order (R, D) -> (R, D); ``counts_E`` says how many rows each expert has."""
    dtype = compute_dtype(x_RD)  # autocast does not know grouped_mm: cast as it would
    gate_up_EPD, out_EDH = (bank.to(dtype) for bank in matrices)
    offsets_E = counts_E.cumsum(0).to(torch.int32)
    inner_RP = F.grouped_mm(x_RD.to(dtype), gate_up_EPD.transpose(-2, -1), offs=offsets_E)
    return F.grouped_mm(activate(inner_RP, activation), out_EDH.transpose(-2, -1), offs=offsets_E)
