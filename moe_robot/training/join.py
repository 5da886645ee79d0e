"""How the processes of torchrun find each other, and what is said and done when one is lost or told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from moe_robot.moe import Ranks
from moe_robot.processes import endings_wait, interrupts_wait
from moe_robot.training.config import TrainConfig
from moe_robot.training.team import Team
from moe_robot.types import UserError

PATIENCE = timedelta(seconds=45)
"""How long one process waits for another before it takes it for lost."""
PREPARATION = timedelta(hours=2)
"""How long the others may take to decode their data."""


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """The team that ``torchrun`` started this process for. One line is said for all, by whoever fails first."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if size == 1:
        yield Team()
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_fresh_store(), rank=rank, world_size=size, timeout=PATIENCE)
    except dist.DistError as error:
        raise UserError(f"the {size} processes of torchrun did not find each other: {error}") from error
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


def check_division(config: TrainConfig, size: int) -> None:
    """Refuse a batch or processes that do not divide (UserError)."""
    parts = config.accumulate * size
    if config.batch_size % parts:
        raise UserError(
            f"--batch-size {config.batch_size} cannot be divided among {size} processes and {config.accumulate} parts: "
            f"expected a multiple of {parts}"
        )
    if size % config.expert_parallel:
        raise UserError(
            f"--expert-parallel {config.expert_parallel} does not divide the {size} processes of torchrun: "
            "expected a divisor"
        )


@contextmanager
def in_turn(team: Team) -> Iterator[None]:
    """The first process of every machine does what is in this block before the others of it, who then find it done."""
    machine, local = os.environ.get("GROUP_RANK", "0"), int(os.environ.get("LOCAL_RANK", 0))
    store = dist.distributed_c10d._get_default_store() if team.ranks.size > 1 else None
    if store is not None and local > 0:
        store.wait([f"machine {machine}"], PREPARATION)
    yield
    if store is not None and local == 0:
        store.set(f"machine {machine}", "")


def connect(team: Team, device: torch.device, expert_parallel: int) -> None:
    """Make the process groups, once all have prepared their data."""
    if team.ranks.size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    store.set(f"ready {team.ranks.rank}", "")
    store.wait([f"ready {rank}" for rank in range(team.ranks.size)], PREPARATION)
    shape = (team.ranks.size // expert_parallel, expert_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "expert"))
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


def _fresh_store() -> Any:
    """Where processes find each other, with nothing in it: torchrun keeps its store when it starts them again.

    The addresses of processes that are gone would be read from it, and that all are ready, before they are.
    """
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # pyright: ignore[reportPrivateImportUsage]


def _first_to_say() -> bool:
    """Whether nobody else of the team has told yet why the run ends."""
    try:
        told = dist.distributed_c10d._get_default_store().add("told", 1)
    except (RuntimeError, OSError):
        return True
    return told == 1
