"""The processes that share one batch: sums, means and selections over all of it, as if one process held it all.

Every process computes the loss of the whole batch, and its gradients are averaged over the processes, as
DistributedDataParallel does. Each then counts as often as there are processes, so the backward of a sum multiplies by
their number; nothing has to be sent for it.
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
        return x if self.size == 1 else _Sum.apply(x, self)  # pyright: ignore[reportReturnType]

    def begin_sum(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin to add up everybody's ``x``, without gradients; the result waits until all have begun, and gives it.

        For what is not needed at once: processes that do not wait for each other need not keep in step.
        """
        total = x.detach().clone()
        if self.size == 1:
            return lambda: total
        work = dist.all_reduce(total, group=self.group, async_op=True)
        assert work is not None

        def result() -> Tensor:
            work.wait()
            return total

        return result

    def mean(self, x: Tensor) -> Tensor:
        """The mean of everybody's ``x``, with gradients."""
        return x if self.size == 1 else self.sum(x) / self.size

    def ratio(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Sum of the numerators over the sum of the denominators (at least 1); scalars, with gradients."""
        if self.size > 1:
            numerator, denominator = self.sum(torch.stack([numerator, denominator.to(numerator.dtype)]))
        return numerator / denominator.clamp(min=1)

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
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.size = ranks.size
        total = x.detach().clone()
        dist.all_reduce(total, group=ranks.group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0] * ctx.size, None
