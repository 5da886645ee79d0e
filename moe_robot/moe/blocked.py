"""Runs a bank of feed-forward experts on rows in blocks that stay in the cache, with its backward written out.

The same numbers as calling each expert on its rows, in fewer operations: the activation is computed once for a block
that holds several small experts' rows, the gradients of an expert's blocks are summed in place, and backward keeps
only the inner projection. ``moe-robot bench moe`` is where it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_robot.moe.experts import Activation, activate, compute_dtype

BLOCK = 512
"""Rows per product: the hidden layer of a block (2 MB at a hidden width of 1024) should not leave the cache."""
FAMILIAR_ROWS = 64
"""What rows are cut to multiples of in bf16 on a processor, where oneDNN writes new code for each shape it meets.

That takes longer than the product (1 to 2 ms against 0.1), and a gate's counts are new at every step. Multiples of this
and what is left, less than this, are few shapes, for which the code is soon there.
"""


class Piece(NamedTuple):
    """The next ``rows`` rows, which go to one expert."""

    expert: int
    rows: int


def cut(pieces: Sequence[Piece], round_to: int | None = None) -> list[list[Piece]]:
    """Groups of neighbours that fit one block together; a piece with more than a block's rows becomes equal parts.

    With ``round_to``, one with at least twice so many rows becomes whole blocks, a multiple of it and a rest.
    """
    groups: list[list[Piece]] = []
    filled = BLOCK
    for expert, rows in pieces:
        for size in _parts(rows, round_to):
            if filled + size > BLOCK:
                groups.append([])
                filled = 0
            groups[-1].append(Piece(expert, size))
            filled += size
    return groups


def _parts(rows: int, round_to: int | None) -> list[int]:
    if round_to is None:
        n_parts = -(-rows // BLOCK)
        return [rows * (part + 1) // n_parts - rows * part // n_parts for part in range(n_parts)]
    blocks, left = divmod(rows, BLOCK)
    last = left if rows < 2 * round_to else left % round_to
    return [size for size in (*[BLOCK] * blocks, left - last, last) if size]


def run_blocked(
    matrices: Mapping[int, tuple[Tensor, Tensor]], activation: Activation, x_RD: Tensor, pieces: Sequence[Piece]
) -> Tensor:
    """Each piece's rows through its expert: (R, D) -> (R, D).

    Args:
        matrices: inner (P, D) and outer (D, H) matrix of each expert that has rows.
        activation: between them.
        x_RD: rows in the order of the pieces.
        pieces: which expert the next rows go to; together R rows.
    """
    if not x_RD.shape[0]:
        return x_RD
    dtype = compute_dtype(x_RD)
    places = {e: 2 * i for i, e in enumerate(matrices)}
    weights = [weight for pair in matrices.values() for weight in pair]
    if weights[0].dtype != dtype:
        weights = [weight.to(dtype) for weight in weights]
    round_to = FAMILIAR_ROWS if dtype == torch.bfloat16 and x_RD.device.type == "cpu" else None
    groups = [[Piece(places[e], rows) for e, rows in group] for group in cut(pieces, round_to)]
    if torch.is_grad_enabled():
        return _Blocked.apply(x_RD.to(dtype), groups, activation, *weights)  # pyright: ignore[reportReturnType]
    return _forward(x_RD.to(dtype), groups, activation, weights)


def _forward(
    x_RD: Tensor,
    groups: Sequence[Sequence[Piece]],
    activation: Activation,
    weights: Sequence[Tensor],
    kept: list[Tensor] | None = None,
) -> Tensor:
    """``expert`` of a piece is here the place of its inner matrix in ``weights``; its outer matrix is the next one.

    The inner projection of each group is appended to ``kept``.
    """
    sizes = [piece.rows for group in groups for piece in group]
    y_RD = x_RD.new_empty(x_RD.shape[0], weights[1].shape[0])
    parts, outputs = iter(x_RD.split(sizes)), iter(y_RD.split(sizes))
    for group in groups:
        matrices = [weights[place].t() for place, _ in group]
        inner_BP = _products([next(parts) for _ in group], matrices)
        if kept is not None:
            kept.append(inner_BP)
        hidden = activate(inner_BP, activation).split([piece.rows for piece in group])
        for (place, _), rows in zip(group, hidden, strict=True):
            torch.mm(rows, weights[place + 1].t(), out=next(outputs))
    return y_RD


def _products(rows: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
    """Each part of a group times its own matrix, one below the other."""
    if len(rows) == 1:
        return rows[0].mm(matrices[0])
    sizes = [len(part) for part in rows]
    result_BJ = rows[0].new_empty(sum(sizes), matrices[0].shape[1])
    for part, matrix, out in zip(rows, matrices, result_BJ.split(sizes), strict=True):
        torch.mm(part, matrix, out=out)  # in place of a concatenation, which would copy
    return result_BJ


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, groups: Sequence[Sequence[Piece]], activation: Activation, *weights: Tensor
    ) -> Tensor:
        inner: list[Tensor] = []
        y_RD = _forward(x_RD, groups, activation, weights, inner)
        ctx.save_for_backward(x_RD, *weights, *inner)
        ctx.groups, ctx.activation = groups, activation
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_RD, *saved = ctx.saved_tensors
        weights, inner = saved[: -len(ctx.groups)], saved[-len(ctx.groups) :]
        sizes = [piece.rows for group in ctx.groups for piece in group]
        xs, grad_ys = iter(x_RD.split(sizes)), iter(grads[0].split(sizes))
        grad_x_RD = torch.empty_like(x_RD) if ctx.needs_input_grad[0] else None
        grad_xs = None if grad_x_RD is None else iter(grad_x_RD.split(sizes))
        sums: list[Any] = [None] * len(weights)

        def add_product(place: int, left_BI: Tensor, right_BJ: Tensor) -> None:
            if ctx.needs_input_grad[3 + place]:
                left_IB, so_far = left_BI.t(), sums[place]
                sums[place] = left_IB.mm(right_BJ) if so_far is None else so_far.addmm_(left_IB, right_BJ)

        for group, inner_BP in zip(ctx.groups, inner, strict=True):
            group_sizes, my_grads = [piece.rows for piece in group], [next(grad_ys) for _ in group]
            grad_BH = _products(my_grads, [weights[place + 1] for place, _ in group])
            hidden_BH, grad_inner_BP = _activate_backward(inner_BP, grad_BH, ctx.activation)
            hidden, grad_inner = hidden_BH.split(group_sizes), grad_inner_BP.split(group_sizes)
            for (place, _), g, h, i in zip(group, my_grads, hidden, grad_inner, strict=True):
                add_product(place + 1, g, h)
                add_product(place, i, next(xs))
                if grad_xs is not None:
                    torch.mm(i, weights[place], out=next(grad_xs))
        return grad_x_RD, None, None, *sums


def _activate_backward(inner_BP: Tensor, grad_BH: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The hidden layer again, and the gradient of the inner projection. ``grad_BH`` is used up."""
    grad_inner_BP = torch.empty_like(inner_BP)
    if activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(grad_BH, inner_BP, 0.0, grad_input=grad_inner_BP)
        return F.relu(inner_BP), grad_inner_BP
    gate_BH, up_BH = inner_BP.chunk(2, dim=-1)
    grad_gate_BH, grad_up_BH = grad_inner_BP.chunk(2, dim=-1)
    swiglu = activation == "swiglu"
    hidden_BH = F.silu(gate_BH) if swiglu else F.gelu(gate_BH)
    torch.mul(grad_BH, hidden_BH, out=grad_up_BH)
    backward = torch.ops.aten.silu_backward if swiglu else torch.ops.aten.gelu_backward
    backward.grad_input(grad_BH.mul_(up_BH), gate_BH, grad_input=grad_gate_BH)
    return hidden_BH.mul_(up_BH), grad_inner_BP
