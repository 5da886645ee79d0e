"""Moves rows between token order and expert order. Sums over a token's K rows are gathered, never scattered: the same
bits every run, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_robot.moe.plan import RoutingPlan

MANY = 512
"""Rows from which on the fused sum is quicker than four plain operations."""


def gather(plan: RoutingPlan, x_TD: Tensor) -> Tensor:
    """Token rows in expert order, (T, D) -> (R, D)."""
    token_R = plan.token_R
    if not torch.is_grad_enabled() or not x_TD.requires_grad:
        return x_TD.index_select(0, token_R)
    inverse_TK = plan.inverse_R.view(-1, plan.experts_per_token)
    return _Gather.apply(x_TD, token_R, inverse_TK, plan.kept_TK is not None)  # pyright: ignore[reportReturnType]


def combine(plan: RoutingPlan, y_RD: Tensor) -> Tensor:
    """Weighted sum of each token's K expert outputs. (R, D) in expert order -> (T, D) in token order."""
    inverse_TK = plan.inverse_R.view(-1, plan.experts_per_token)
    if plan.kept_TK is not None:
        y_RD = torch.cat([y_RD, y_RD.new_zeros(1, y_RD.shape[1])])  # the row of routes that do not run
    weights_TK = plan.weights_TK.to(y_RD.dtype)
    if torch.is_grad_enabled() and (y_RD.requires_grad or weights_TK.requires_grad):
        return _Combine.apply(y_RD, weights_TK, inverse_TK, plan.order_R, plan.token_R)  # pyright: ignore[reportReturnType]
    return _sum_of_rows(y_RD, inverse_TK, weights_TK)


def _sum_of_rows(y_RD: Tensor, rows_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """``sum_k weights[t, k] * y[rows[t, k]]``."""
    if y_RD.device.type == "cpu" and not torch.compiler.is_compiling() and rows_TK.numel() > MANY:
        return F.embedding_bag(rows_TK, y_RD, mode="sum", per_sample_weights=weights_TK)  # reads each row just once
    y_TKD = y_RD.index_select(0, rows_TK.reshape(-1)).view(*rows_TK.shape, y_RD.shape[1])
    return (y_TKD if weights_TK is None else y_TKD * weights_TK.unsqueeze(-1)).sum(dim=1)


class _Gather(torch.autograd.Function):
    """``index_select`` whose backward gathers too: autograd's own would add rows one by one into zeros."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_R: Tensor, inverse_TK: Tensor, some_do_not_run: bool) -> Tensor:
        ctx.save_for_backward(inverse_TK)
        ctx.some_do_not_run = some_do_not_run
        return x_TD.index_select(0, token_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inverse_TK,) = ctx.saved_tensors
        grad_RD = grads[0]
        if ctx.some_do_not_run:
            grad_RD = torch.cat([grad_RD, grad_RD.new_zeros(1, grad_RD.shape[1])])
        return _sum_of_rows(grad_RD, inverse_TK, None), None, None, None


class _Combine(torch.autograd.Function):
    """The weighted sum over K with both gradients taken in expert order."""

    @staticmethod
    def forward(
        ctx: Any, y_RD: Tensor, weights_TK: Tensor, inverse_TK: Tensor, order_R: Tensor, token_R: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_RD, weights_TK, inverse_TK, order_R, token_R)
        return _sum_of_rows(y_RD, inverse_TK, weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y_RD, weights_TK, inverse_TK, order_R, token_R = ctx.saved_tensors
        grad_RD = grads[0].index_select(0, token_R)
        grad_weights_TK = grad_y_RD = None
        if ctx.needs_input_grad[1]:
            n_running = order_R.shape[0]
            products_R = F.pad((grad_RD * y_RD[:n_running]).sum(dim=1), (0, y_RD.shape[0] - n_running))
            grad_weights_TK = products_R.index_select(0, inverse_TK.reshape(-1)).view(weights_TK.shape)
        if ctx.needs_input_grad[0]:
            grad_y_RD = grad_RD.mul_(weights_TK.reshape(-1).index_select(0, order_R).unsqueeze(1))
            if y_RD.shape[0] > order_R.shape[0]:
                grad_y_RD = torch.cat([grad_y_RD, grad_y_RD.new_zeros(1, y_RD.shape[1])])
        return grad_y_RD, grad_weights_TK, None, None, None
