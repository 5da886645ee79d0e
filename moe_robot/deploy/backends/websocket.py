"""A websocket that is connected again whenever it is lost, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from moe_robot.deploy.address import refusal
from moe_robot.types import UserError

MAX_BYTES = 8 * 2**20
"""Of one message that comes in: a raw picture of 1920x1080 fits."""


@dataclass(frozen=True)
class Timing:
    """How long to wait for what, seconds.

    Attributes:
        open_s: for a connection.
        first_pause_s: before connecting again; twice as long each time that fails.
        longest_pause_s: at most.
        ping_s: between pings, and for their answers.
        close_s: for the other end to agree that it is over.
        write_s: for the other end to take a message, before the connection is given up.
        silence_s: for a topic, before it is subscribed again.
        farewell_s: after the last command, before leaving: a bridge may forget what it has not passed on yet.
    """

    open_s: float = 5.0
    first_pause_s: float = 0.25
    longest_pause_s: float = 5.0
    ping_s: float = 1.0
    close_s: float = 0.5
    write_s: float = 0.5
    silence_s: float = 2.0
    farewell_s: float = 0.3


class LastingWebsocket:
    """Connects, runs a conversation until it fails, and connects again."""

    def __init__(
        self,
        address: str,
        converse: Callable[[ClientConnection], Awaitable[None]],
        failed: Callable[[str], None],
        timing: Timing,
        insecure_hosts: Collection[str] = (),
        ca_file: Path | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is connected yet.

        Args:
            address: ``ws://`` on this machine, else ``wss://``.
            converse: called with every new connection, in this object's thread; it ends by an exception.
            failed: told why a connection ended or was not made, in one line.
            timing: how long to wait for what.
            insecure_hosts: other machines that ``ws://`` may be used with.
            ca_file: certificates to trust in place of the system's. Certificates are always verified.
            headers: sent when connecting, for example ``Authorization``.

        Raises:
            UserError: an address that others could listen on, or no certificates in ``ca_file``.
        """
        if reason := refusal(address, insecure_hosts):
            raise UserError(reason)
        self._ssl = _trust(ca_file) if address.startswith("wss:") else None
        self._address, self._converse, self._failed, self._timing = address, converse, failed, timing
        self._headers = headers or {}
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="websocket", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
            self._thread.join()
        self._loop.close()

    def soon(self, what: Callable[[], object]) -> None:
        """Have something called in this object's thread; only during a conversation."""
        self._loop.call_soon_threadsafe(what)

    def _run(self) -> None:
        self._task = self._loop.create_task(self._stay_connected())
        with suppress(asyncio.CancelledError):  # stop() asks for it
            self._loop.run_until_complete(self._task)

    async def _stay_connected(self) -> None:
        pause = self._timing.first_pause_s
        while True:
            try:
                async with self._connect() as connection:
                    pause = self._timing.first_pause_s
                    _forget_what_was_not_sent(connection)
                    await self._converse(connection)
            except* (OSError, WebSocketException) as errors:
                reason = _first(errors)
                self._failed(f"{self._address}: {' '.join(str(reason).split()) or type(reason).__name__}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._timing.longest_pause_s)

    def _connect(self) -> connect:
        timing = self._timing
        return _WithoutRedirects(
            self._address, ssl=self._ssl, additional_headers=self._headers, compression=None, proxy=None,
            open_timeout=timing.open_s, ping_interval=timing.ping_s, ping_timeout=timing.ping_s,
            close_timeout=timing.close_s, max_size=MAX_BYTES, max_queue=4, write_limit=1024,
        )  # fmt: skip


class _WithoutRedirects(connect):
    """Stays with the address that was checked."""

    def process_redirect(self, exc: Exception) -> Exception:
        """As if it were any other refusal."""
        return exc


def _forget_what_was_not_sent(connection: ClientConnection) -> None:
    """When the socket is closed the system drops what it has not sent, rather than sending it once the line is back."""
    raw = connection.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UserError(f"no certificates in {ca_file} ({error}): expected a PEM file") from error


def _first(errors: BaseExceptionGroup) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
