"""``moe-robot serve``: one policy for many robots, over websockets in openpi's protocol."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from moe_robot.types import UserError

if TYPE_CHECKING:
    from moe_robot.deploy.serving.server import PolicyServer
    from moe_robot.deploy.serving.settings import Settings


@dataclass(frozen=True)
class Options:
    """Options of ``moe-robot serve``."""

    checkpoint: tyro.conf.Positional[Path]
    """A checkpoint folder, a training run that holds one, or a folder that `moe-robot export` wrote."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach needs --token-file, --certificate and --key."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    batch_window_ms: float = 5.0
    """Longest wait for observations of other robots while the policy is idle. Under load nothing waits for it."""
    max_batch: int = 64
    """Observations in one pass of the network at most; 1 answers one by one."""
    max_robots: int = 256
    """Connections at most."""
    max_frame_mib: float = 4.0
    """Size of one observation at most, MiB."""
    rename: Annotated[tuple[str, ...], tyro.conf.arg(metavar="THEIRS=OURS ...")] = ()
    """Clients' keys for ours, for example observation/image=observation.images.front."""
    ignore: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY ...")] = ()
    """Clients' keys that nobody reads; others that are not known are refused."""
    watch: float | None = None
    """Look every so many seconds whether the checkpoint was written anew, and let it take over. SIGHUP does it once."""
    token_file: Path | None = None
    """A file with the token that robots must send; only its owner may be able to read it."""
    certificate: Path | None = None
    """PEM file of the TLS certificate, with --key."""
    key: Path | None = None
    """PEM file of the certificate's key."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs. cuda has never been tried."""
    threads: int = 0
    """Processor threads of the network; 0 for all cores but one."""


def run(options: Options) -> int:
    """Serve until SIGTERM or Ctrl-C; what was asked is answered first."""
    from moe_robot.deploy.serving.server import PolicyServer

    server = PolicyServer(settings(options), partial(print, flush=True))
    if asyncio.run(_serve(server)) == signal.SIGINT:
        raise KeyboardInterrupt("what was asked is answered")
    return 0


def settings(options: Options) -> Settings:
    """What the options mean.

    Raises:
        UserError: numbers, files or pairs that cannot be.
    """
    from moe_robot.deploy.serving.security import read_token, server_context
    from moe_robot.deploy.serving.settings import Settings
    from moe_robot.deploy.serving.wire import Caps

    for name, value, least in (
        ("batch-window-ms", options.batch_window_ms, 0), ("max-batch", options.max_batch, 1),
        ("max-robots", options.max_robots, 1), ("port", options.port, 0), ("threads", options.threads, 0),
        ("watch", 1 if options.watch is None else options.watch, 0.1), ("max-frame-mib", options.max_frame_mib, 0.01),
    ):  # fmt: skip
        if not value >= least:
            raise UserError(f"--{name} {value:g}: expected {least:g} or more")
    if (options.certificate is None) != (options.key is None):
        raise UserError("--certificate and --key go together: both are PEM files")
    tls = server_context(options.certificate, options.key) if options.certificate and options.key else None
    pairs = [pair.partition("=") for pair in options.rename]
    for theirs, equals, ours in pairs:
        if not (theirs and equals and ours):
            raise UserError(f"--rename {theirs}{equals}{ours}: expected THEIRS=OURS")
    return Settings(
        options.checkpoint, options.host, options.port, read_token(options.token_file) if options.token_file else None,
        tls, options.batch_window_ms / 1e3, options.max_batch, options.max_robots,
        Caps(bytes=int(options.max_frame_mib * 2**20)), {theirs: ours for theirs, _, ours in pairs},
        frozenset(options.ignore), options.device, options.threads, options.watch,
    )  # fmt: skip


async def _serve(server: PolicyServer) -> int:
    """The signal that ended it. A second one does not wait."""
    loop, ending, told = asyncio.get_running_loop(), asyncio.Event(), list[int]()

    def end(number: int) -> None:
        told.append(number)
        ending.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(ending.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return told[0]
    stopping.cancel()
    await starting
    swaps: set[asyncio.Task[bool]] = set()

    def swap() -> None:
        task = asyncio.ensure_future(server.keeper.swap())
        swaps.add(task)
        task.add_done_callback(swaps.discard)

    loop.add_signal_handler(signal.SIGHUP, swap)
    about = server.keeper.about
    print(
        f"serving {server.settings.checkpoint} at {server.address}: plans of {about.chunk} actions of "
        f"{len(about.features.action_names)} numbers for {about.features.fps} Hz; cameras "
        f"{', '.join(about.features.cameras) or 'none'}; {len(about.features.state_names)} state entries",
        flush=True,
    )
    await server.serve_until(ending)
    return told[0]
