"""Starts the processes of one training run as torchrun would, out of a process that has imported everything already."""

import multiprocessing
import os
import socket
import traceback

import torch

from moe_robot.training.train import train


def start(config, size, on_progress=None, restart=0):
    """The processes of one run, not waited for."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    made = [
        context.Process(target=_member, args=(config, rank, size, port, on_progress, restart)) for rank in range(size)
    ]
    for process in made:
        process.start()
    return made


def run(config, size, on_progress=None, restart=0):
    """Train in ``size`` processes to the end."""
    processes = start(config, size, on_progress, restart)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size


def _member(config, rank, size, port, on_progress, restart):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(restart),
    }  # fmt: skip
    try:
        train(config, *([on_progress] if on_progress else []))
    except BaseException:
        (config.out / f"failed-{rank}").write_text(traceback.format_exc())
        raise
