"""The processes that train one policy together: who they are, what they share, and what happens when one is lost.

``torchrun`` starts them. Each holds a slice of every batch. Weights are the same in all, kept so by
DistributedDataParallel; with expert parallelism the experts are divided among groups of processes. A process by itself
is a team of one, which sends nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moe_robot.moe import ALONE, ExpertShard, MoEFeedForward, Ranks, shard_experts, share
from moe_robot.processes import endings_wait, interrupts_wait
from moe_robot.training.config import TrainConfig
from moe_robot.types import UserError

PATIENCE = timedelta(seconds=45)
"""How long one process waits for another before it takes it for lost."""
PREPARATION = timedelta(hours=2)
"""How long the others may take to decode their data."""


@dataclass
class Team:
    """The processes of one run; :func:`joined` makes it.

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
        self.model = DistributedDataParallel(
            policy, process_group=self.averaging, broadcast_buffers=False, find_unused_parameters=True
        )

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

    def agree(self, elapsed: float, save: bool, stop: bool) -> tuple[float, bool, bool]:
        """The same answer for all: the first process's clock and its wish to save, and whether anybody must stop."""
        if self.ranks.size == 1:
            return elapsed, save, stop
        said = torch.tensor([elapsed * self.leads, float(save and self.leads), float(stop)], dtype=torch.float64)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        elapsed, save, stop = said.tolist()
        return elapsed, bool(save), bool(stop)

    def total(self, value: Any) -> Any:
        """The sum of what all have: of anything that can be added; None where there is nothing."""
        if self.ranks.size == 1 or value is None:
            return value
        everybodys: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(everybodys, value)
        return reduce(add, everybodys)


@contextmanager
def joined(config: TrainConfig, device: torch.device) -> Iterator[Team]:
    """The team that ``torchrun`` started this process for. One line is said for all, by whoever fails first.

    Raises:
        UserError: the batch or the processes do not divide.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    e, parts = config.expert_parallel, config.accumulate * size
    if config.batch_size % parts:
        raise UserError(
            f"--batch-size {config.batch_size} cannot be divided among {size} processes and {config.accumulate} parts: "
            f"expected a multiple of {parts}"
        )
    if size % e:
        raise UserError(f"--expert-parallel {e} does not divide the {size} processes of torchrun: expected a divisor")
    if size == 1:
        yield Team()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    team = Team(Ranks(rank, size))
    try:
        yield team
    except UserError:
        if not _first_to_say():
            raise SystemExit(1) from None
        raise
    except KeyboardInterrupt:
        if not team.leads:
            raise SystemExit(130) from None
        raise
    finally:
        dist.destroy_process_group()


def connect(team: Team, device: torch.device, expert_parallel: int) -> None:
    """Make the process groups, once all have prepared their data."""
    if team.ranks.size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    store.set(f"ready {team.ranks.rank}", "")
    store.wait([f"ready {rank}" for rank in range(team.ranks.size)], PREPARATION)
    shape = (team.ranks.size // expert_parallel, expert_parallel)
    mesh = dist.init_device_mesh(device.type, shape, mesh_dim_names=("data", "expert"))
    team.data = mesh.get_group("data")
    team.experts = mesh.get_group("expert") if expert_parallel > 1 else None
    team.averaging = dist.new_group(timeout=PATIENCE)
    team.saving = dist.new_group(timeout=PATIENCE, backend="gloo")


@contextmanager
def all_answer(team: Team, out: Path) -> Iterator[None]:
    """Turn the loss of another process into one line."""
    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL"))
        if team.ranks.size == 1 or isinstance(error, UserError) or not of_network:
            raise
        raise UserError(
            f"another of the {team.ranks.size} processes has ended or does not answer: the last saved state is kept in "
            f"{out}; --resume goes on from it, and with torchrun --max-restarts that happens by itself"
        ) from error


@contextmanager
def endings_are_agreed(team: Team) -> Iterator[Callable[[], bool]]:
    """A function that says whether this process was asked to stop: by Ctrl-C, and in a team by torchrun as well."""
    if team.ranks.size > 1:
        with endings_wait() as told:
            yield told
        return
    with interrupts_wait() as check:

        def told() -> bool:
            try:
                check()
            except KeyboardInterrupt:
                return True
            return False

        yield told


def is_restart() -> bool:
    """Whether torchrun has started this run again after a process was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process where there are several."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _first_to_say() -> bool:
    """Whether nobody else of the team has told yet why the run ends."""
    try:
        told = dist.distributed_c10d._get_default_store().add("told", 1)
    except (RuntimeError, OSError):
        return True
    return told == 1
