"""A rosbridge server for one robot of this process: what it tells goes to whoever asked, what it is told waits here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from moe_robot.deploy.backends import rosbridge_wire as wire
from moe_robot.deploy.simulation.server import RESET, RESET_ANSWER, WAITING, Heard
from moe_robot.types import UserError

MAX_BYTES = 2**20
"""Of one message that comes in: commands are small."""
RESTARTED = 1012
"""The websocket's code for a server that begins anew."""


class _Client:
    """One connection: of every topic only the newest message waits to be sent."""

    def __init__(self, connection: ServerConnection, epoch: int) -> None:
        self.connection, self.epoch = connection, epoch
        self.cbor: dict[str, bool] = {}
        """Topics that were asked for, and whether as CBOR."""
        self._waiting: dict[str, str | bytes] = {}
        self._something = asyncio.Event()

    def say(self, topic: str, frame: str | bytes) -> None:
        self._waiting[topic] = frame
        self._something.set()

    async def write(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self._something.wait()
                self._something.clear()
                while self._waiting:
                    await self.connection.send(self._waiting.pop(next(iter(self._waiting))))


class BridgeServer:
    """Speaks the part of the rosbridge v2 protocol that needs no ROS: subscribe, advertise, publish, and one service.

    Connections are served in a thread of their own; every method may be called from any thread.
    """

    def __init__(self, host: str, port: int, tells: Mapping[str, str], hears: Mapping[str, str]) -> None:
        """Nothing listens yet.

        Args:
            host: to listen on; whoever can reach it can drive the robot.
            port: 0 for any free one.
            tells: topic -> message type, of what clients may subscribe to.
            hears: topic -> message type, of what clients may publish.
        """
        self._host, self._port, self._tells, self._hears = host, port, tells, hears
        self._clients: set[_Client] = set()
        self._heard = Heard(maxlen=WAITING)
        self._epoch, self._lock, self._reset = 0, threading.Lock(), threading.Event()
        self._bound: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="bridge server", daemon=True)

    def start(self) -> int:
        """Begin to listen; the port.

        Raises:
            UserError: the address is taken or not of this machine.
        """
        self._thread.start()
        return self._bound.result()

    def stop(self) -> None:
        """Close all connections and listen no more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def restart(self) -> None:
        """Break all connections, as a robot does that begins anew; what came on them is forgotten."""
        with self._lock:
            self._epoch += 1
            self._heard.clear()
        self._reset.clear()
        self._loop.call_soon_threadsafe(self._leave_all)

    def wants_reset(self) -> bool:
        """Whether the service was called since the last restart."""
        return self._reset.is_set()

    def wanted(self, topic: str) -> bool:
        """Whether anybody has asked for the topic."""
        return any(topic in client.cbor for client in tuple(self._clients))

    def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """Send a message to everybody who has asked for its topic. It may hold bytes and numpy arrays."""
        self._loop.call_soon_threadsafe(self._tell, topic, message)

    def take(self) -> Mapping[str, Mapping[str, Any]]:
        """Topic -> the newest message that came since this was asked last."""
        return dict(self.take_each())

    def take_each(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Topic and message of all that came since this or :meth:`take` was asked last, in the order they came."""
        with self._lock:
            heard = tuple(self._heard)
            self._heard.clear()
            return heard

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await serve(
                self._talk, self._host, self._port, compression=None, max_size=MAX_BYTES, write_limit=1024,
                server_header=wire.SIMULATED, origins=[None],  # no page in a browser here drives the robot
            )  # fmt: skip
        except OSError as error:
            reason = f"cannot listen on {self._host}:{self._port} ({error.strerror}): give another --address"
            self._bound.set_exception(UserError(reason))
            return
        async with server:
            self._bound.set_result(server.sockets[0].getsockname()[1])
            await self._over.wait()

    async def _talk(self, connection: ServerConnection) -> None:
        client = _Client(connection, self._epoch)
        self._clients.add(client)
        writer = asyncio.create_task(client.write())
        try:
            with suppress(ConnectionClosed):
                async for frame in connection:
                    if complaint := self._hear(client, frame):
                        client.say("", wire.status(complaint))
        finally:
            self._clients.discard(client)
            writer.cancel()

    def _hear(self, client: _Client, frame: str | bytes) -> str | None:
        """Do what a client asks; what is wrong with it, or None."""
        try:
            message = wire.parse(frame)
        except wire.BadFrame as error:
            return str(error)
        operation, topic = message["op"], str(message.get("topic"))
        if operation == "call_service":
            self._serve_call(client, message)
            return None
        if operation in ("unsubscribe", "unadvertise"):
            if operation == "unsubscribe":
                client.cbor.pop(topic, None)
            return None
        if operation not in ("subscribe", "advertise", "publish"):
            return f"{operation[:40]!r} is not offered here: expected subscribe, advertise, publish or call_service"
        offered = self._tells if operation == "subscribe" else self._hears
        if topic not in offered:
            return f"there is nothing to {operation} on {topic[:80]!r}: expected one of {', '.join(offered)}"
        kind = message.get("type", offered[topic])
        if kind != offered[topic]:
            return f"{topic} is of type {offered[topic]}, and not {str(kind)[:80]!r}"
        if operation == "subscribe":
            client.cbor[topic] = message.get("compression") == "cbor"
        elif operation == "publish":
            content = message.get("msg")
            if not isinstance(content, Mapping):
                return f"a message on {topic} without fields"
            with self._lock:
                if client.epoch == self._epoch:
                    self._heard.append((topic, content))
        return None

    def _serve_call(self, client: _Client, message: Mapping[str, Any]) -> None:
        service, known = str(message.get("service"))[:80], message.get("service") == RESET
        answer = RESET_ANSWER if known else f"there is no service {service!r}: expected {RESET}"
        number = str(message.get("id", ""))[:80]
        client.say("call", wire.service_response(service, number, known, answer))
        if known:
            self._reset.set()

    def _tell(self, topic: str, message: Mapping[str, Any]) -> None:
        for client in self._clients:
            if topic in client.cbor:
                client.say(topic, wire.told(topic, message, client.cbor[topic]))

    def _leave_all(self) -> None:
        for client in self._clients:
            client.cbor.clear()
        self._closing = asyncio.gather(*(client.connection.close(RESTARTED) for client in self._clients))
