"""The experts: SwiGLU feed-forward networks (Shazeer 2020), one module each."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """``W_out (silu(W_gate x) * W_up x)``, tokens (R, D) -> tokens (R, D).

    Gate and up projection are one matrix: one large product is quicker than two small ones.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Apply the network to each row."""
        gate, up = self.gate_up(x_RD).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)
