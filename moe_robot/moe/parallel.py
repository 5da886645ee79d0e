"""Expert parallelism: each process of a group keeps some of the experts, and tokens travel to them and back.

The gate and its plan are everybody's own. Carrying it out is: rows in expert order, all-to-all to the processes that
keep those experts, the experts, all-to-all back, the weighted sum. Ragged and dropless: every row of the plan runs.

Shape suffixes: W processes of the group · L = E / W experts kept by each · S rows that arrived here; otherwise as in
:mod:`moe_robot.moe.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe_robot.moe import grouped
from moe_robot.moe.blocked import Piece
from moe_robot.moe.dispatch import Experts, choose_backend, run, takes_segments
from moe_robot.moe.experts import ExpertBank, compute_dtype
from moe_robot.moe.layer import MoEFeedForward
from moe_robot.moe.plan import RoutingPlan
from moe_robot.moe.rows import combine, gather


class ExpertShard(nn.Module):
    """The experts that this process keeps, ``first`` to ``first + L - 1`` of E.

    In the state dict they have their numbers among all E, as if all were here, so what one division of the experts
    saved another can load. Made by :func:`shard_experts`.
    """

    def __init__(self, experts: nn.ModuleList, first: int, here: int, group: Any) -> None:
        super().__init__()
        self.first, self.group, self.n_experts = first, group, len(experts)
        self.shapes = [[weight.shape for weight in weights_of(experts, e)] for e in range(len(experts))]
        """Of every expert's weights, also of those that are elsewhere."""
        self.some_take_segments = any(takes_segments(experts[e]) for e in range(len(experts)))
        self.here = _part(experts, first, here)
        self.register_state_dict_post_hook(_number_among_all)
        self.register_load_state_dict_pre_hook(_number_among_these)

    def __len__(self) -> int:
        return self.n_experts

    def has(self, expert: int) -> bool:
        """Whether it is kept here."""
        return self.first <= expert < self.first + len(self.here)

    def fetch(self, expert: int) -> list[Tensor]:
        """The weights of any expert, from whoever keeps it. All processes of the group call it together."""
        mine = weights_of(self.here, expert - self.first) if self.has(expert) else None
        like = next(self.parameters())
        values = [like.new_empty(shape) for shape in self.shapes[expert]] if mine is None else [w.clone() for w in mine]
        for value in values:
            dist.broadcast(value, group_src=expert // len(self.here), group=self.group)
        return values


def shard_experts(layer: MoEFeedForward, group: Any) -> None:
    """Let this process keep only its share of a layer's experts from now on.

    Call it after the weights are the same everywhere and before the optimiser is made: it replaces parameters.

    Raises:
        ValueError: the number of experts is no multiple of the group's size.
    """
    size, n_experts = dist.get_world_size(group), len(layer.names)
    if n_experts % size:
        raise ValueError(f"{n_experts} experts cannot be divided among {size} processes: expected a divisor")
    here = n_experts // size
    layer.experts = ExpertShard(layer.experts, dist.get_rank(group) * here, here, group)  # type: ignore[assignment]
    layer.execute = execute_sharded


def execute_sharded(plan: RoutingPlan, x_TD: Tensor, experts: Experts, segment_T: Tensor | None = None) -> Tensor:
    """As :func:`moe_robot.moe.execute` for the experts of an :class:`ExpertShard`; all of its group call it."""
    assert isinstance(experts, ExpertShard)
    here = len(experts.here)
    rows_RD = gather(plan, x_TD).to(compute_dtype(x_TD))
    sent_WL = plan.counts_E.view(-1, here)
    got_WL = torch.empty_like(sent_WL)
    dist.all_to_all_single(got_WL, sent_WL.contiguous(), group=experts.group)
    sent, got = sent_WL.sum(dim=1).tolist(), got_WL.sum(dim=1).tolist()
    rows_SD = _Exchange.apply(rows_RD, sent, got, experts.group)
    segment_S = None
    if segment_T is not None and experts.some_take_segments:
        segment_S = _Exchange.apply(segment_T[plan.token_R], sent, got, experts.group)
    y_SD = _run_here(experts.here, rows_SD, got_WL, segment_S)  # type: ignore[arg-type]
    return combine(plan, _Exchange.apply(y_SD, got, sent, experts.group))  # type: ignore[arg-type]


def _run_here(experts: nn.ModuleList, rows_SD: Tensor, got_WL: Tensor, segment_S: Tensor | None) -> Tensor:
    """Rows as they arrived, by sender and then by expert, through their experts."""
    if (
        isinstance(experts, ExpertBank)
        and choose_backend(rows_SD.device.type, rows_SD.dtype, rows_SD.shape[0], False) == "grouped"
        and rows_SD.shape[0]
    ):
        which_L = torch.arange(len(experts), device=rows_SD.device).repeat(len(got_WL))
        order_S = torch.argsort(which_L.repeat_interleave(got_WL.reshape(-1)), stable=True)
        y_SD = grouped.run_grouped(experts.stacked(), experts.activation, rows_SD[order_S], got_WL.sum(dim=0))
        return torch.empty_like(y_SD).index_copy(0, order_S, y_SD)
    pieces = [Piece(e, n) for of_sender in got_WL.tolist() for e, n in enumerate(of_sender)]
    return run(experts, rows_SD, pieces, segment_S).to(rows_SD.dtype)


class _Exchange(torch.autograd.Function):
    """Rows to the processes of a group, ``sent[w]`` of them to process w; backward carries gradients home."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sequence[int], got: Sequence[int], group: Any) -> Tensor:
        ctx.sent, ctx.got, ctx.group = sent, got, group
        return _exchange(rows, sent, got, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _exchange(grads[0], ctx.got, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: Sequence[int], got: Sequence[int], group: Any) -> Tensor:
    result = rows.new_empty(sum(got), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), list(got), list(sent), group=group)
    return result


def weights_of(experts: nn.ModuleList, e: int) -> list[Tensor]:
    """An expert's weights, or its slices of those that a stacked bank holds for all; views, without gradients."""
    if isinstance(experts, ExpertBank) and experts.storage == "stacked":
        return [experts.gate_up_EPD.detach()[e], experts.out_EDH.detach()[e]]
    return [parameter.detach() for parameter in experts[e].parameters()]


def _part(experts: nn.ModuleList, first: int, n: int) -> nn.ModuleList:
    """A bank or list of ``n`` of the experts, in the same storage."""
    if not isinstance(experts, ExpertBank):
        return nn.ModuleList([experts[e] for e in range(first, first + n)])
    gate_up_EPD, out_EDH = (bank.detach() for bank in experts.stacked())
    with torch.device("meta"):  # draws no random numbers
        part = ExpertBank(n, out_EDH.shape[1], out_EDH.shape[2], experts.activation)
    part.to_empty(device=out_EDH.device).to(out_EDH.dtype)
    part.load_state_dict(
        {
            f"{e}.{name}.weight": bank[first + e]
            for e in range(n)
            for name, bank in (("gate_up", gate_up_EPD), ("out", out_EDH))
        }
    )
    return part.store_as(experts.storage)


def _number_among_all(shard: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(shard, ExpertShard)
    _rename(state, prefix + "here.", prefix, shard.first)


def _number_among_these(shard: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    assert isinstance(shard, ExpertShard)
    _rename(state, prefix, prefix + "here.", -shard.first)


def _rename(state: dict[str, Any], before: str, after: str, shift: int) -> None:
    """``<before>3.out.weight`` -> ``<after>5.out.weight`` for a shift of 2, in place."""
    for key in [key for key in state if key.startswith(before) and key[len(before) :].partition(".")[0].isdigit()]:
        number, _, rest = key[len(before) :].partition(".")
        state[f"{after}{int(number) + shift}.{rest}"] = state.pop(key)
