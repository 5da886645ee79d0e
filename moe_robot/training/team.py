"""The processes that train one policy together: who they are, and what they share.

``torchrun`` starts them. Each holds a slice of every batch. Weights are the same in all, kept so by
DistributedDataParallel; with expert parallelism the experts are divided among groups of processes. A process by itself
is a team of one, which sends nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moe_robot.moe import ALONE, ExpertShard, MoEFeedForward, Ranks, shard_experts, share
from moe_robot.types import UserError


@dataclass
class Team:
    """The processes of one run; :func:`moe_robot.training.join.joined` makes it.

    Attributes:
        ranks: this process among them.
        data: the process group of those that keep the same experts as this one; None in a team of one.
        experts: the process group among which the experts are divided; None where they are not.
        averaging: the process group of the gradients, which must not mix with tokens on their way.
        saving: the process group of the thread that saves.
    """

    ranks: Ranks = ALONE
    data: Any = None
    experts: Any = None
    averaging: Any = None
    saving: Any = None
    sharded: list[nn.Parameter] = field(default_factory=list)
    model: Any = None
    _said: tuple[torch.Tensor, Any] | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes logs and the policy."""
        return self.ranks.rank == 0

    def adopt(self, policy: nn.Module) -> None:
        """Divide the policy's experts, and share its batches and gradients from now on. Before the optimiser is made.

        Raises:
            UserError: no experts, or a number of them that cannot be divided so.
        """
        self.model = policy
        if self.ranks.size == 1:
            return
        share(policy, self.ranks)
        if self.experts is not None:
            self._divide_experts(policy)
        apart = {id(p) for p in self.sharded}
        names = [name for name, p in policy.named_parameters() if id(p) in apart]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(policy, names)
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its successor is of torch 2.15
        self.model = DistributedDataParallel(
            policy, process_group=self.averaging, broadcast_buffers=False, find_unused_parameters=True,
            gradient_as_bucket_view=True,  # gradients are sent from where they are made
            bucket_cap_mb=_bucket(policy),
        )  # fmt: skip

    def _divide_experts(self, policy: nn.Module) -> None:
        layers = [module for module in policy.modules() if isinstance(module, MoEFeedForward)]
        if not layers:
            raise UserError("--expert-parallel: this policy has no experts to divide; leave it out")
        for layer in layers:
            try:
                shard_experts(layer, self.experts)
            except ValueError as error:
                raise UserError(f"--expert-parallel: {error}") from error
        shards = [module for module in policy.modules() if isinstance(module, ExpertShard)]
        self.sharded = [parameter for shard in shards for parameter in shard.parameters()]

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one part of a batch: gradients are averaged at the last."""
        if self.ranks.size == 1 or last:
            yield
        else:
            with self.model.no_sync():
                yield

    def average_experts(self) -> None:
        """The gradients of divided experts, which came from the tokens of a whole group, over all tokens."""
        used = torch.tensor([float(p.grad is not None) for p in self.sharded])
        alike = dist.get_world_size(self.data) if self.sharded else 1
        if alike > 1:
            dist.all_reduce(used, group=self.data)
        trained = [p for p, n in zip(self.sharded, used.tolist(), strict=True) if n]
        if not trained:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        if alike > 1:
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            dist.all_reduce(flat, group=self.data)
            parts = flat.split([grad.numel() for grad in grads])
            grads = [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)]
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.grad = grad.div_(self.ranks.size)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float) -> float:
        """Scale gradients down to ``norm`` in place, that of the whole policy; returns the norm before."""
        if not self.sharded:
            return float(nn.utils.clip_grad_norm_(parameters, norm))
        elsewhere = {id(p) for p in self.sharded}
        own = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None and id(p) not in elsewhere])
        square = nn.utils.get_total_norm([p.grad for p in self.sharded if p.grad is not None]).to(own) ** 2
        dist.all_reduce(square, group=self.experts)
        total = (own**2 + square).sqrt()
        nn.utils.clip_grads_with_norm_(parameters, norm, total)
        return float(total)

    def begin_mean(self, numbers: Mapping[str, float]) -> Callable[[], dict[str, float]]:
        """Begin to take the mean of everybody's numbers, which have the same names; the result waits and gives it."""
        total = self.ranks.begin_sum(torch.tensor([*numbers.values()], dtype=torch.float64))
        return lambda: dict(zip(numbers, (total() / self.ranks.size).tolist(), strict=True))

    def agree(self, elapsed: float, save: bool, stop: bool) -> tuple[float, bool, bool]:
        """The same answer for all: the first process's clock and its wish to save, and whether anybody must stop.

        In a team it is what was said the call before, so that nobody waits for the others to say it. The first call has
        nothing to answer with and gives back what it was told, which is to be the same for all.
        """
        if self.ranks.size == 1:
            return elapsed, save, stop
        said = torch.tensor([elapsed * self.leads, float(save and self.leads), float(stop)], dtype=torch.float64)
        before = self._said
        self._said = said, dist.all_reduce(said, op=dist.ReduceOp.MAX, async_op=True)
        if before is None:
            return elapsed, save, stop
        said, sent = before
        sent.wait()
        elapsed, save, stop = said.tolist()
        return elapsed, bool(save), bool(stop)

    def settle(self) -> None:
        """Wait for what :meth:`agree` still has on its way, at the end of a run."""
        if self._said is not None:
            self._said[1].wait()
            self._said = None

    def total(self, value: Any) -> Any:
        """The sum of what all have: of anything that can be added; None where there is nothing."""
        if self.ranks.size == 1 or value is None:
            return value
        everybodys: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(everybodys, value)
        return reduce(add, everybodys)


def _bucket(policy: nn.Module) -> float:
    """MiB of gradients sent at a time: a quarter, so that most are on their way while the others are made."""
    size = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    return min(max(size / 4 / 2**20, 1.0), 25.0)
