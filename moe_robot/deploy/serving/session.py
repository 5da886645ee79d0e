"""One robot's connection: metadata, then strictly observation and answer, and what is left of the robot's plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from moe_robot.deploy.serving.batching import Batcher, NoAnswer, Planned
from moe_robot.deploy.serving.metrics import Metrics
from moe_robot.deploy.serving.observations import Reader, Sensed
from moe_robot.deploy.serving.wire import Caps, WireError, pack, unpack
from moe_robot.types import UserError

STEP_PATH = "/step"
"""Robots that connect here get one action per observation, and the server keeps their plans."""
GOING_AWAY, BAD_DATA, REFUSED, FAILED = 1001, 1007, 1008, 1011
"""Codes that a connection is closed with."""


@dataclass(frozen=True)
class Service:
    """What all sessions share.

    Attributes:
        batcher: plans.
        reader: of observations; a new one after a swap.
        metrics: counts.
        metadata: what a robot is told when it connects.
        execute: steps of a plan that are played before the next, for :data:`STEP_PATH`.
        caps: of a frame.
        send_s: a robot that does not take an answer within so many seconds is cut off.
        draining: whether connections are to end once they are answered.
    """

    batcher: Batcher
    reader: Callable[[], Reader]
    metrics: Metrics
    metadata: Callable[[], Mapping[str, Any]]
    execute: Callable[[], int]
    caps: Caps
    send_s: float
    draining: Callable[[], bool]


class Session:
    """Answers one connection until it ends, and keeps nothing beyond that."""

    def __init__(self, connection: ServerConnection, service: Service, steps: bool) -> None:
        """Nothing is sent yet; ``steps`` for one action per observation in place of whole plans."""
        self.connection, self._service, self._steps = connection, service, steps
        self.busy = False
        self._plan: Planned | None = None
        self._position, self._task = 0, ""
        self._previous_ms: float | None = None

    async def run(self) -> None:
        """Until the robot goes, errs, or the server drains."""
        try:
            await self._send(pack(dict(self._service.metadata())))
            while not self._service.draining():
                frame = await self.connection.recv()
                began, self.busy = time.perf_counter(), True
                fault = await self._serve(frame, began)
                self.busy = False
                if fault is not None:
                    code, line = fault
                    await self._send(line)
                    return await self.connection.close(code, _short(line))
            await self.connection.close(GOING_AWAY, "the server is ending")
        except ConnectionClosed:
            pass  # it has gone: nothing of it is kept
        except TimeoutError:  # it takes nothing: no farewell either
            self.connection.transport.abort()
        finally:
            self.busy = False

    async def _serve(self, frame: bytes | str, began: float) -> tuple[int, str] | None:
        """Answer one frame; or say why not, with the code to close with."""
        metrics = self._service.metrics
        metrics.received.add(len(frame))
        try:
            if isinstance(frame, str):
                raise WireError("a text frame came, expected a binary one of msgpack")
            sensed = self._service.reader().read(unpack(frame, self._service.caps))
            answer = await self._answer(sensed, began)
        except (WireError, UserError) as error:
            metrics.requests.add(outcome="refused")
            return BAD_DATA if isinstance(error, WireError) else REFUSED, _line(error)
        except NoAnswer as error:
            metrics.requests.add(outcome="failed")
            return FAILED, _line(error)
        await self._send(answer)
        self._previous_ms = 1e3 * (time.perf_counter() - began)
        metrics.requests.add(outcome="ok")
        metrics.total.note(self._previous_ms / 1e3)
        return None

    async def _answer(self, sensed: Sensed, began: float) -> bytes:
        planned = await self._planned(sensed)
        timing = {
            "infer_ms": 1e3 * planned.inference_s,
            "queue_ms": 1e3 * planned.queued_s,
            "batch": planned.batch,
            "generation": planned.generation,
        }
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        actions: np.ndarray = planned.actions
        if not self._steps:
            return pack({"actions": actions, "server_timing": timing})
        step = self._position
        self._position += 1
        return pack({"actions": actions[step], "step": step, "server_timing": timing})

    async def _planned(self, sensed: Sensed) -> Planned:
        """A new plan, or, for a robot that wants single actions, the one of which something is left."""
        used_up = self._plan is None or self._position >= min(self._service.execute(), len(self._plan.actions))
        if not self._steps or used_up or sensed.reset or (sensed.task or "") != self._task:
            self._plan, self._position, self._task = None, 0, sensed.task or ""
            planned = await self._service.batcher.plan(sensed)
            if self._steps:
                self._plan = planned
            return planned
        assert self._plan is not None
        return self._plan

    async def _send(self, message: bytes | str) -> None:
        async with asyncio.timeout(self._service.send_s):
            await self.connection.send(message)
        self._service.metrics.sent.add(len(message))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:1000]


def _short(line: str) -> str:
    """As long as the reason in a closing frame may be: 123 bytes."""
    return line.encode()[:120].decode(errors="ignore")
