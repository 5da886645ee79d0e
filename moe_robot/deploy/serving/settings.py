"""How a policy is served: addresses, batches, and what is asked of robots."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe_robot.deploy.serving.wire import Caps


@dataclass(frozen=True)
class Settings:
    """How a policy is served.

    Attributes:
        checkpoint: a checkpoint folder, a training run that holds one, or an exported policy.
        host: address to listen on.
        port: 0 for any that is free.
        token: that robots must send; None for no token.
        tls: None for plain websockets.
        window_s: longest wait for company while the policy is idle, seconds.
        largest: observations in one batch.
        robots: connections at most.
        caps: of a frame.
        rename: a client's key -> our key.
        ignore: a client's keys that nobody reads.
        device: "cpu", "cuda" or "auto".
        threads: of the policy's process; 0 for all cores but one.
        watch_s: look this often whether the checkpoint changed; None for never.
        open_s: for a handshake.
        ping_s: between pings.
        pong_s: a robot that does not answer a ping, or is in the middle of one frame, for so long is cut off.
        send_s: for a robot to take an answer.
        drain_s: at most, for what is queued when the server is to end.
    """

    checkpoint: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    tls: ssl.SSLContext | None = None
    window_s: float = 0.005
    largest: int = 64
    robots: int = 256
    caps: Caps = field(default_factory=Caps)
    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    device: str = "cpu"
    threads: int = 0
    watch_s: float | None = None
    open_s: float = 10.0
    ping_s: float = 5.0
    pong_s: float = 10.0
    send_s: float = 5.0
    drain_s: float = 10.0
