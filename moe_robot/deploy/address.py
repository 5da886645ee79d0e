"""Which bridge addresses may be used: plain ``ws://`` only where nobody else can listen or speak."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit


def refusal(address: str, insecure_hosts: Collection[str] = ()) -> str | None:
    """Why ``address`` may not be used, in one line, or None.

    A bridge does what anyone on its connection says, so off this machine the connection must be ``wss://``, unless the
    host was allowed by name in ``insecure_hosts``.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{address!r} is no address ({error}): expected one like ws://127.0.0.1:9090"
    if parts.scheme not in ("ws", "wss") or not host:
        return f"{address!r} is no websocket address: expected one like ws://127.0.0.1:9090 or wss://robot.lab:9090"
    if parts.username or parts.password:
        return "the address holds a password, which would end up in logs: send it as a header"
    if parts.scheme == "wss" or is_loopback(host) or host in insecure_hosts:
        return None
    return (
        f"{address!r} is neither encrypted nor on this machine, so anyone on the way could drive the robot: use wss:// "
        f"or an SSH tunnel, or add {host!r} to insecure_hosts"
    )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine, told by its name alone: nothing is looked up."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
