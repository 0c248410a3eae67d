"""Where a bus is, and as whom one comes to it."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct


class BusAddress(Struct, frozen=True, kw_only=True):
    """`url`: `nats://host:port` or `tls://host:port`, several separated by commas."""

    url: str = "nats://127.0.0.1:4222"
    credentials: Path | None = None
    """A NATS credentials file (user JWT and its seed). It is read again for each connection."""
    ca: Path | None = None
    """PEM: who signed the servers' certificates. None with `tls://`: the system's."""
    replicas: int = 1
    """Copies of each stream that this service makes: 3 with three servers or more."""
    inbox: str = ""
    """Where answers arrive, `_INBOX_<inbox>.>`; a credential may allow only its own. Empty: the user's name in the credentials."""
