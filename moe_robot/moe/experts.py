"""The experts: feed-forward networks of the kinds that the papers use, one module each."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["swiglu", "geglu", "relu"]


class FeedForwardExpert(nn.Module):
    """Tokens (R, D) -> tokens (R, D).

    "swiglu": ``W_out (silu(W_gate x) * W_up x)`` (Shazeer 2020). "geglu": the same with GELU, the experts of GLaM
    (Du et al. 2021). "relu": ``W_out relu(W_in x)``, the experts of the Switch Transformer (Fedus et al. 2021).

    Gate and up projection are one matrix: one large product is quicker than two small ones.
    """

    def __init__(self, width: int, hidden: int, activation: Activation = "swiglu") -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"unknown activation {activation!r}: expected one of {', '.join(get_args(Activation))}")
        self.activation = activation
        self.gate_up = nn.Linear(width, hidden if activation == "relu" else 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Apply the network to each row."""
        if self.activation == "relu":
            return self.out(F.relu(self.gate_up(x_RD)))
        gate, up = self.gate_up(x_RD).chunk(2, dim=-1)
        return self.out((F.silu(gate) if self.activation == "swiglu" else F.gelu(gate)) * up)
