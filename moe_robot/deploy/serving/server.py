"""The policy server: lets robots in, hands their observations to the batcher, ends without losing what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

import moe_robot
from moe_robot.deploy.serving.batching import Batcher
from moe_robot.deploy.serving.keeper import PolicyKeeper
from moe_robot.deploy.serving.metrics import CONTENT_TYPE, Metrics
from moe_robot.deploy.serving.observations import Reader
from moe_robot.deploy.serving.security import check_address, is_authorised
from moe_robot.deploy.serving.session import GOING_AWAY, STEP_PATH, Service, Session
from moe_robot.deploy.serving.settings import Settings
from moe_robot.types import UserError

HEALTH_PATH, METRICS_PATH = "/healthz", "/metrics"


class PolicyServer:
    """Serves one policy: ``await start()``, then ``await serve_until(ending)``."""

    def __init__(self, settings: Settings, say: Callable[[str], object] = print) -> None:
        """Nothing runs yet.

        Args:
            settings: how.
            say: told what happens, a line each.

        Raises:
            UserError: an address that others can reach without a token or without TLS.
        """
        check_address(settings.host, settings.token, settings.tls is not None)
        self.settings, self._say, self.metrics = settings, say, Metrics()
        self._sessions: set[Session] = set()
        self.batcher = Batcher(settings.window_s, settings.largest, lambda: len(self._sessions), self.metrics)
        self.keeper = PolicyKeeper(settings, self.batcher, self.metrics, say)
        self._service = Service(
            self.batcher, lambda: self.reader, self.metrics, self._metadata, lambda: self.keeper.about.execute,
            settings.caps, settings.send_s, lambda: self._draining,
        )  # fmt: skip
        self._draining = False
        self._server: Server | None = None
        self._work: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the policy and listen.

        Raises:
            UserError: it cannot be loaded, ``rename`` names what it does not take, or the port is taken.
        """
        await self.keeper.start()
        try:
            about, settings = self.keeper.about, self.settings
            self.reader = Reader(
                about.features, about.needs_all, about.reads, dict(settings.rename), frozenset(settings.ignore)
            )
            self._server = await self._listen()
        except BaseException:
            self.keeper.stop()
            raise
        self._work = [asyncio.create_task(work) for work in (self.batcher.run(), self.keeper.look_after())]

    @property
    def port(self) -> int:
        """That is listened on."""
        assert self._server is not None
        return next(iter(self._server.sockets)).getsockname()[1]

    @property
    def address(self) -> str:
        """For clients."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{'wss' if self.settings.tls else 'ws'}://{host}:{self.port}"

    async def serve_until(self, ending: asyncio.Event) -> None:
        """Serve until ``ending`` is set; then answer what was asked, let nobody in, and end.

        Raises:
            UserError: the policy's process ended again and again.
        """
        waiting = asyncio.ensure_future(ending.wait())
        try:
            done, _ = await asyncio.wait([waiting, *self._work], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                task.result()  # raises: they end in no other way
            await self._drain()
        finally:
            waiting.cancel()
            await self.stop()

    async def stop(self) -> None:
        """End at once."""
        self._draining = True
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self.keeper.stop()

    async def _listen(self) -> Server:
        settings = self.settings
        try:
            return await serve(
                self._converse, settings.host, settings.port, ssl=settings.tls, process_request=self._receive,
                origins=[None],  # a page in a browser of this machine may not drive robots
                compression=None,  # nor may a small frame unfold into a large one
                open_timeout=settings.open_s, ping_interval=settings.ping_s, ping_timeout=settings.pong_s,
                close_timeout=2.0, max_size=settings.caps.bytes, max_queue=1, write_limit=65536, server_header=None,
            )  # fmt: skip
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot listen on {settings.host}:{settings.port} ({reason}): name another --port"
            ) from error

    def _receive(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before a connection becomes a websocket: answer plain requests, and turn away who may not come in."""
        path = urlsplit(request.path).path
        if path == HEALTH_PATH:
            well = self.metrics.ready.value() and not self._draining
            return connection.respond(*((HTTPStatus.OK, "OK\n") if well else _unavailable("not ready")))
        if path not in ("/", STEP_PATH, METRICS_PATH):
            return connection.respond(HTTPStatus.NOT_FOUND, f"no {path[:80]!r} here\n")
        if not is_authorised(request.headers.get("Authorization"), self.settings.token):
            self.metrics.turned_away.add(reason="token")
            return connection.respond(HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key TOKEN'\n")
        if path == METRICS_PATH:
            response = connection.respond(HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if self._draining or len(self._sessions) >= self.settings.robots:
            reason = "ending" if self._draining else "full"
            self.metrics.turned_away.add(reason=reason)
            return connection.respond(*_unavailable(f"the server is {reason}"))
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        steps = urlsplit(connection.request.path).path == STEP_PATH
        session = Session(connection, self._service, steps)
        self._sessions.add(session)
        self.metrics.robots.set(len(self._sessions))
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
            self.metrics.robots.set(len(self._sessions))

    def _metadata(self) -> dict[str, Any]:
        about = self.keeper.about
        return {
            "server": f"moe_robot {moe_robot.__version__}",
            "features": about.features.to_json(),
            "action_horizon": about.chunk,
            "execute": about.execute,
            "observation_keys": self.reader.names,
            "needs_all_sensors": about.needs_all,
            "reads_instructions": about.reads,
            "checkpoint_sha256": about.sha256,
            "generation": self.batcher.generation,
            "max_frame_bytes": self.settings.caps.bytes,
        }

    async def _drain(self) -> None:
        """Let nobody in any more, and wait until every robot that had asked is answered."""
        self._draining = True
        self.metrics.ready.set(0)
        assert self._server is not None
        self._server.close(close_connections=False)
        await asyncio.sleep(0)  # frames that have arrived are read
        idle = [session for session in self._sessions if not session.busy]
        farewells = [session.connection.close(GOING_AWAY, "the server is ending") for session in idle]
        asked = len(self._sessions) - len(idle)
        self._say(f"ending: {asked} robots are answered first" if asked else "ending")
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_s):
                await asyncio.gather(*farewells)
                while self._sessions:
                    await asyncio.sleep(0.01)


def _unavailable(why: str) -> tuple[HTTPStatus, str]:
    return HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n"
