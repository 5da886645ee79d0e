"""A policy that runs elsewhere: asks a policy server for plans. Needs numpy, msgpack and websockets."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from moe_robot.deploy.address import refusal
from moe_robot.deploy.serving.wire import Caps, WireError, pack, unpack
from moe_robot.types import IMAGE_PREFIX, STATE, TASK, Features, Observation, UserError

CAPS = Caps(bytes=64 * 2**20, items=65536, depth=4)
"""Of what the server sends."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between tries to connect."""


class RemoteError(UserError):
    """The server cannot be reached, gave no answer, or said what is wrong; one line."""


class ConnectionLost(RemoteError):
    """There was no answer, and nobody said that another try would end the same way."""


class RemotePolicy:
    """A policy behind ``moe-robot serve``, or any server of openpi's protocol that tells ``features``.

    It plans ahead, so it can stand wherever a policy is asked for its plan. For one thread.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        ca_file: Path | None = None,
        patience_s: float = 0.0,
        answer_s: float = 10.0,
        insecure_hosts: Collection[str] = (),
    ) -> None:
        """Connect.

        Args:
            address: ``ws://127.0.0.1:8000`` on this machine, else ``wss://``.
            token: that the server asks for.
            ca_file: certificates to trust in place of the system's.
            patience_s: go on trying to connect, and to ask again on a new connection, for so many seconds.
            answer_s: longest wait for an answer.
            insecure_hosts: other machines that ``ws://`` may be used with.

        Raises:
            RemoteError: nobody is there, or the server turned this client away.
            UserError: an address that others could listen on, or no certificates in ``ca_file``.
        """
        if reason := refusal(address, insecure_hosts):
            raise UserError(reason)
        try:
            self._ssl = ssl.create_default_context(cafile=ca_file) if address.startswith("wss:") else None
        except OSError as error:
            raise UserError(f"no certificates in {ca_file} ({error}): expected a PEM file") from error
        self._headers = {"Authorization": f"Api-Key {token}"} if token else {}
        self.address, self._patience_s, self._answer_s = address, patience_s, answer_s
        self._connection: ClientConnection | None = None
        self._queue: deque[np.ndarray] = deque()
        self.metadata: Mapping[str, Any] = {}
        self.inference_count = 0
        self._patiently(self._connect)

    @property
    def features(self) -> Features:
        """The features of the policy that is served."""
        return self._features

    def action_chunk(self, observation: Observation) -> np.ndarray:
        """The plan for the next H control steps, float32 (H, A), in the environment's units.

        Raises:
            ConnectionLost: there was no answer within the patience.
            RemoteError: the server refused the observation, and says why.
        """
        asked: dict[str, Any] = {IMAGE_PREFIX + camera: frame for camera, frame in observation.images.items()}
        if observation.state is not None:
            asked[STATE] = observation.state
        if observation.task is not None:
            asked[TASK] = observation.task
        actions = self.infer(asked).get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not np.isfinite(actions).all():
            raise RemoteError(f"{self.address} answered without a plan: expected 'actions' (H, A) of finite numbers")
        self.inference_count += 1
        return actions.astype(np.float32)

    def select_action(self, observation: Observation) -> np.ndarray:
        """The next action (A,), float32. Asks the server when the steps of the last plan are used up."""
        if not self._queue:
            plan = self.action_chunk(observation)
            self._queue.extend(plan[: int(self.metadata.get("execute", 1))])
        return self._queue.popleft()

    def reset(self) -> None:
        """Forget the episode: the rest of the last plan is dropped."""
        self._queue.clear()

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to an observation in any keys that it takes.

        Raises:
            ConnectionLost: there was no answer within the patience.
            RemoteError: the server refused the observation, and says why.
        """
        frame = pack(dict(observation))
        return self._patiently(lambda: self._ask(frame))

    def close(self) -> None:
        """Say goodbye."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _patiently(self, call: Any) -> Any:
        """What ``call`` returns, tried again on new connections until the patience is at its end."""
        end, pause = time.monotonic() + self._patience_s, FIRST_PAUSE_S
        while True:
            try:
                return call()
            except ConnectionLost:
                self._drop()
                if time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _drop(self) -> None:
        """Without a farewell: whoever does not answer does not answer that either."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_timeout = 0.1
            connection.close()

    def _connect(self) -> ClientConnection:
        try:
            try:
                self._connection = self._open()
            except InvalidMessage:
                # No answer at all: over TLS the refusal of a wrong token is now and then lost (3 of 8,700 times here),
                # perhaps because the library reads in one thread while it writes in another. It hardly happens twice.
                self._connection = self._open()
            hello = unpack(_binary(self._connection.recv(timeout=self._answer_s)), CAPS)
            features = Features.from_json(hello["features"])
        except InvalidStatus as error:
            response = error.response
            said = (response.body or b"").decode(errors="replace").strip()[:200]
            kind = ConnectionLost if response.status_code == 503 else RemoteError
            raise kind(f"{self.address} turned this client away: {response.status_code} {said}") from error
        except ssl.SSLCertVerificationError as error:
            raise RemoteError(
                f"{self.address} shows a certificate that is not trusted ({error}): see ca_file"
            ) from error
        except (OSError, TimeoutError, WebSocketException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionLost(
                f"no policy server answers at {self.address} ({reason}): start moe-robot serve"
            ) from error
        except (WireError, KeyError, TypeError, ValueError) as error:
            raise RemoteError(
                f"{self.address} is no policy server of moe-robot: its greeting has no features"
            ) from error
        if self.metadata and (fault := self._features.mismatch(features)):
            raise RemoteError(f"another policy is served at {self.address} now: {fault}")
        self.metadata, self._features = hello, features
        return self._connection

    def _open(self) -> ClientConnection:
        entering = connect(
            self.address, ssl=self._ssl, additional_headers=self._headers, compression=None, proxy=None,
            open_timeout=self._answer_s, max_size=CAPS.bytes, max_queue=2, close_timeout=1.0,
        )  # fmt: skip
        return entering.__enter__()  # a connection by itself is deprecated; close() is its exit

    def _ask(self, frame: bytes) -> dict[str, Any]:
        connection = self._connection or self._connect()
        try:
            connection.send(frame)
            answer = connection.recv(timeout=self._answer_s)
        except TimeoutError as error:
            raise ConnectionLost(f"{self.address} gave no answer within {self._answer_s:g} s") from error
        except (ConnectionClosed, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConnectionLost(f"the connection to {self.address} was lost ({reason})") from error
        if isinstance(answer, str):
            self._drop()  # the server closes after it has said what is wrong
            raise RemoteError(f"{self.address} says: {answer}")
        try:
            content = unpack(answer, CAPS)
        except WireError as error:
            raise RemoteError(f"{self.address} sent what cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise RemoteError(f"{self.address} answered a {type(content).__name__}, expected a map with 'actions'")
        return content


def _binary(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise WireError(f"the server says: {message}")
    return message
