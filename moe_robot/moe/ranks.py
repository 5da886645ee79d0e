"""The processes that share one batch: sums, means and selections over all of it, as if one process held it all.

The loss of the whole batch is the mean of what the processes compute, and its gradient the mean of their gradients,
which DistributedDataParallel takes. In that mean each counts one over their number, so the backward of a sum multiplies
by their number; nothing has to be sent for it. Only what is not linear in the tokens needs a sum in the forward pass; a
mean needs no more than how many there are, which is known before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Ranks:
    """Who shares the batch. All hold equally many samples, consecutive ones in the order of their ranks.

    Attributes:
        rank: of this process among them.
        size: how many there are; 1 for a process by itself, which sends nothing.
        group: the process group; None for torch's default one.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def samples(self, n: int, device: torch.device | None = None) -> Tensor:
        """int64 (n,), which samples of the whole batch the ``n`` of this process are."""
        return torch.arange(self.rank * n, (self.rank + 1) * n, device=device)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of everybody's ``x``, with gradients."""
        return self.begin_sum(x)()

    def begin_sum(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin to add up everybody's ``x``; the result waits until all have begun, and gives the sum, with gradients.

        For what is not needed at once: processes that do not wait for each other need not keep in step.
        """
        if self.size == 1:
            return lambda: x
        total = x.detach().clone()
        work = dist.all_reduce(total, group=self.group, async_op=True)
        assert work is not None

        def result() -> Tensor:
            work.wait()
            return _Sum.apply(x, total, self.size)  # pyright: ignore[reportReturnType]

        return result

    def begin_shares(self, counts: Tensor) -> Callable[[], Tensor]:
        """Begin to count what is True for everybody; the result gives float32 weights of the same shape.

        The mean over the processes of a weighted sum is then the mean over all that count; 0 where nothing does.
        """
        total = self.begin_sum(counts.sum())
        return lambda: counts.float() * (self.size / total().clamp(min=1))

    def gather(self, x_TN: Tensor) -> tuple[Tensor, slice]:
        """Everybody's rows one below the other, however many each has, without gradients; and which are ours."""
        if self.size == 1:
            return x_TN.detach(), slice(0, len(x_TN))
        length = torch.tensor([len(x_TN)], device=x_TN.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self.group)
        sizes = [int(n) for n in lengths]
        padded = x_TN.new_zeros(max(sizes), *x_TN.shape[1:])
        padded[: len(x_TN)] = x_TN.detach()
        rows = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(rows, padded, group=self.group)
        first = sum(sizes[: self.rank])
        return torch.cat([part[:n] for part, n in zip(rows, sizes, strict=True)]), slice(first, first + len(x_TN))


ALONE = Ranks()
"""One process with the whole batch."""


def share(model: nn.Module, ranks: Ranks) -> None:
    """Tell every part of a model that has an attribute ``ranks`` with whom it shares its batches."""
    for module in model.modules():
        if hasattr(module, "ranks"):
            module.ranks = ranks  # type: ignore[assignment]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, total: Tensor, size: int) -> Tensor:
        ctx.size = size
        return total.view_as(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0] * ctx.size, None, None
