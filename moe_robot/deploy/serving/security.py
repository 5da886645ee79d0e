"""Who may connect: addresses, the token and the certificate of the policy server."""

from __future__ import annotations

import hmac
import ssl
from pathlib import Path

from moe_robot.deploy.address import is_loopback
from moe_robot.types import UserError

SHORTEST_TOKEN = 16
"""Characters."""
SCHEMES = ("api-key", "bearer")
"""Of the header ``Authorization``: openpi's client and Prometheus send these."""


def check_address(host: str, token: str | None, encrypted: bool) -> None:
    """Nothing if ``host`` may be listened on.

    Raises:
        UserError: others can reach it, and there is no token or no certificate.
    """
    if is_loopback(host) or (token and encrypted):
        return
    lacking = " and ".join(
        name for name, there in (("--token-file", token), ("--certificate with --key", encrypted)) if not there
    )
    raise UserError(
        f"--host {host} can be reached from other machines, and whoever reaches it could read cameras and drive robots:"
        f" add {lacking}, or keep to 127.0.0.1 and use an SSH tunnel"
    )


def read_token(path: Path) -> str:
    """The token in a file that only its owner can read.

    Raises:
        UserError: it cannot be read, others can read it, or it is short.
    """
    try:
        mode, token = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no token in {path} ({error}): expected a file with one line") from error
    if mode & 0o077:
        raise UserError(f"others can read the token in {path}: chmod 600 {path}")
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"the token in {path} is no line of {SHORTEST_TOKEN} or more letters and digits: make one with "
            f"'openssl rand -hex 32'"
        )
    return token


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer with this certificate.

    Raises:
        UserError: they cannot be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"no TLS with {certificate} and {key} ({error}): expected PEM files of one pair") from error
    return context


def is_authorised(header: str | None, token: str | None) -> bool:
    """Whether an ``Authorization`` header holds the token; always, where none is asked for."""
    if token is None:
        return True
    scheme, _, given = (header or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())  # takes as long for every wrong one
    return same and scheme.lower() in SCHEMES
