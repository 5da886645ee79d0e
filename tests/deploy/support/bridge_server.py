"""A small rosbridge server for tests, and a cable between it and the client that can be cut and frozen."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path

import cbor2
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

CERTIFICATE = Path(__file__).with_name("localhost.pem")
PATIENCE_S = 20.0


def wait_until(condition, what="it", patience_s=PATIENCE_S):
    """Wait for something that must come, however slow the machine."""
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


class Bridge:
    """Speaks the rosbridge v2 protocol on a free port, or on one it is told."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.heard: list[dict] = []
        """All operations of all clients, in order, with the number of their connection under ``client``."""
        self.clients: list = []
        self._server = serve(self._talk, "127.0.0.1", port, ssl=context, compression=None)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _talk(self, client) -> None:
        number = len(self.clients)
        self.clients.append(client)
        with suppress(ConnectionClosed):
            for frame in client:
                self.heard.append(json.loads(frame, parse_constant=_no_constant) | {"client": number})

    def published(self, topic: str) -> list:
        """All messages that clients published there."""
        return [said["msg"] for said in self.heard if said["op"] == "publish" and said["topic"] == topic]

    def operations(self, op: str, client: int | None = None) -> list[dict]:
        return [said for said in self.heard if said["op"] == op and client in (None, said["client"])]

    def say(self, frame: str | bytes) -> None:
        """Send a frame to the latest client."""
        with suppress(ConnectionClosed):
            self.clients[-1].send(frame)

    def tell(self, topic: str, message: dict, cbor: bool = True) -> None:
        operation = {"op": "publish", "topic": topic, "msg": message}
        self.say(cbor2.dumps(operation) if cbor else json.dumps(operation))

    def kill(self) -> None:
        """As kill -9: all sockets close without a word."""
        self._server.shutdown()
        for client in self.clients:
            with suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class Cable:
    """Carries bytes between a client and a server, until it is frozen: then it takes them and keeps them."""

    def __init__(self, port: int) -> None:
        self._target, self._lock = port, threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything through that was kept, and all that comes."""
        self._flowing.set()

    def close(self) -> None:
        self._listener.close()
        self._flowing.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def _no_constant(name: str) -> None:
    raise AssertionError(f"the client sent {name}, which is no JSON")
