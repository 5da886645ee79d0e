"""Carries tokens to their experts and back according to a plan. Every route that the plan keeps runs.

``execute`` picks one of three ways by :func:`choose_backend`; ``execute_loop`` is the plain definition that the tests
hold all of them against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moe_robot.moe import grouped
from moe_robot.moe.blocked import BLOCK, Piece, run_blocked
from moe_robot.moe.experts import ExpertBank, activate, compute_dtype, feed_forward
from moe_robot.moe.plan import RoutingPlan
from moe_robot.moe.rows import combine, gather

Backend = Literal["single", "sorted", "grouped"]
Experts = Sequence[nn.Module] | nn.ModuleList
Execute = Callable[[RoutingPlan, Tensor, Experts, Tensor | None], Tensor]
"""The signature of :func:`execute`."""

FEW_ROWS = 4
"""Up to so many routes, sorting them costs more than it saves."""


def choose_backend(device_type: str, dtype: torch.dtype, n_rows: int | None, exporting: bool) -> Backend:
    """Which way is fastest, from what is known before anything runs.

    Args:
        device_type: "cpu", "cuda", ...
        dtype: what the experts compute in, autocast included.
        n_rows: T·K; unused when exporting, where it may not be a number yet.
        exporting: whether torch.export or torch.compile is tracing.
    """
    if exporting or (device_type != "cpu" and dtype == torch.bfloat16 and grouped.is_available()):
        return "grouped"
    return "single" if n_rows is not None and 0 < n_rows <= FEW_ROWS else "sorted"


def execute(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """Every token through its experts, and the weighted sum of what they give: (T, D) -> (T, D).

    A route that does not run adds exactly nothing; a token with none gets zeros.

    Args:
        plan: who goes where.
        x_TD: the tokens.
        experts: E modules, rows (R, D) -> rows (R, D). One with the attribute ``takes_segments = True`` is called with
            ``(rows_RD, segment_R)`` once, all its rows at a time, those of a segment beside each other.
        segment_T: int64 (T,), the segment of each token, which those experts need.

    Raises:
        ValueError: if an expert takes segments and none are given, or experts that differ in shape are to be exported.
    """
    exporting = torch.compiler.is_compiling()
    device, dtype = x_TD.device.type, compute_dtype(x_TD)
    backend = choose_backend(device, dtype, None if exporting else plan.ids_TK.numel(), exporting)
    if backend == "grouped":
        if (
            isinstance(experts, ExpertBank)
            and plan.kept_TK is None
            and (exporting or experts.apart(range(len(experts))))
        ):
            return execute_grouped(plan, x_TD, experts)
        if exporting:
            raise ValueError("only an ExpertBank, without capacity, can be exported or compiled")
    if backend == "sorted" and isinstance(experts, ExpertBank) and experts.storage == "stacked":
        # Acting on few tokens, calls are what costs: all experts in one. In training it would cost more.
        few = plan.ids_TK.numel() <= BLOCK and not torch.is_grad_enabled() and plan.kept_TK is None
        if few and device == "cpu" and dtype in (torch.float32, torch.bfloat16) and grouped.is_available():
            return execute_grouped(plan, x_TD, experts)
    run_them = execute_single if backend == "single" else execute_sorted
    return run_them(plan, x_TD, experts, segment_T)


def execute_sorted(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """Gather rows in expert order, run each expert on its contiguous rows, and sum each token's K outputs."""
    rows_RD = gather(plan, x_TD)
    segment_R = None if segment_T is None else segment_T[plan.token_R]
    return combine(plan, run(experts, rows_RD, [Piece(e, n) for e, n in enumerate(plan.counts_E.tolist())], segment_R))


def execute_single(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """Few routes, one after the other as they stand: for the one token of a control loop.

    Nothing is sorted and next to nothing is called: between two weight matrices that fill the cache, every further
    operation finds its own code and data pushed out, and costs several times what it does in a loop by itself.
    """
    routes_TK = plan.ids_TK.tolist()
    bank = experts if isinstance(experts, ExpertBank) and plan.kept_TK is None and routes_TK else None
    matrices = None if bank is None else bank.apart({e for ids in routes_TK for e in ids})
    if bank is None or matrices is None:
        return execute_sorted(plan, x_TD, experts, segment_T)
    rows = []
    for t, ids in enumerate(routes_TK):
        x_1D = x_TD if len(routes_TK) == 1 else x_TD[t : t + 1]
        y_KD = torch.cat([feed_forward(x_1D, *matrices[e], bank.activation) for e in ids])
        rows.append(plan.weights_TK[t : t + 1].to(y_KD.dtype) @ y_KD)
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def execute_grouped(plan: RoutingPlan, x_TD: Tensor, bank: ExpertBank) -> Tensor:
    """As sorted, with one grouped product for all experts: nothing waits for the device to say who goes where."""
    return combine(plan, grouped.run_grouped(bank.stacked(), bank.activation, gather(plan, x_TD), plan.counts_E))


def execute_everywhere(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """Every expert on every token in two products, and the weight 0 where the plan does not send it.

    E/K times the arithmetic, but no row is moved and no shape depends on the gate: the form that any graph format can
    hold. For one robot's few tokens onnxruntime is as quick with it as with sorted rows (docs/deploy.md).

    Raises:
        ValueError: if the experts are no :class:`ExpertBank`.
    """
    if not isinstance(experts, ExpertBank):
        raise ValueError("experts that differ in shape cannot run everywhere at once: expected an ExpertBank")
    inner_EPD, outer_EDH = (bank.to(x_TD.dtype) for bank in experts.stacked())
    weights_TE = torch.zeros_like(plan.logits_TE).scatter(1, plan.ids_TK, plan.weights_TK).to(x_TD.dtype)
    inner_TEP = (x_TD @ inner_EPD.flatten(0, 1).t()).view(-1, *inner_EPD.shape[:2])
    hidden_TEH = activate(inner_TEP, experts.activation) * weights_TE.unsqueeze(-1)
    return hidden_TEH.flatten(1) @ outer_EDH.transpose(1, 2).flatten(0, 1)


def run(experts: Experts, rows_RD: Tensor, pieces: Sequence[Piece], segment_R: Tensor | None) -> Tensor:
    """Each piece's rows through its expert, (R, D) -> (R, D)."""
    if isinstance(experts, ExpertBank):
        matrices = experts.apart({piece.expert for piece in pieces if piece.rows})
        if matrices is not None:
            return run_blocked(matrices, experts.activation, rows_RD, pieces)
    outputs, start = [], 0
    for e, n in pieces:
        part_RD, expert = rows_RD[start : start + n], experts[e]
        if n and takes_segments(expert):
            if segment_R is None:
                name = type(expert).__name__
                raise ValueError(f"{name} takes whole segments: expected segment_T with the tokens")
            outputs.append(expert(part_RD, segment_R[start : start + n]))
        elif n:
            outputs += [expert(block_BD) for block_BD in part_RD.split(BLOCK)]
        start += n
    return torch.cat(outputs) if outputs else rows_RD


def takes_segments(expert: Any) -> bool:
    """Whether an expert wants the rows of whole segments together with their segment numbers."""
    return bool(getattr(expert, "takes_segments", False))


def execute_loop(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """The definition, token by token: y_t = sum over k that run of weight[t, k] * expert[id[t, k]](x_t).

    An expert that takes segments gets all its tokens first, since what it makes of one depends on the others.
    """
    whole = {}
    for e, expert in enumerate(experts):
        if takes_segments(expert) and segment_T is not None:
            mine_T = _running(plan, e).any(dim=1).nonzero().squeeze(1)
            whole[e] = dict(zip(mine_T.tolist(), expert(x_TD[mine_T], segment_T[mine_T]), strict=True))
    rows = []
    for t in range(x_TD.shape[0]):
        y_D = torch.zeros_like(x_TD[t])
        for k in range(plan.experts_per_token):
            e = int(plan.ids_TK[t, k])
            if bool(_running(plan, e)[t, k]):
                y_D = y_D + plan.weights_TK[t, k] * (whole[e][t] if e in whole else experts[e](x_TD[t : t + 1])[0])
        rows.append(y_D)
    return torch.stack(rows) if rows else torch.zeros_like(x_TD)


def _running(plan: RoutingPlan, expert: int) -> Tensor:
    chosen_TK = plan.ids_TK == expert
    return chosen_TK if plan.kept_TK is None else chosen_TK & plan.kept_TK
