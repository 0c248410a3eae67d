"""What a webhook can be told."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from services.shared.bus.address import BusAddress


class WebhookOptions(Struct, frozen=True, kw_only=True):
    """See `sluice webhook --help`."""

    certificate: Path
    """PEM; read again when it changes, as is the key."""
    key: Path
    bus: BusAddress = BusAddress()
    name: str = "webhook"
    groups: tuple[str, ...] = ("default",)
    """Of nodes: the compilers of each are asked."""
    host: str = "0.0.0.0"  # noqa: S104 - the API server calls from elsewhere
    port: int = 9443
    client_ca: Path | None = None
    """PEM: only clients with a certificate of this CA (the API server's) get past the handshake."""
    health_port: int = 0
    """Plain HTTP for `/healthz` and `/metrics`, which the HTTPS port answers as well; 0: none."""
    deadline_seconds: float = 2.0
    """From the complete question to the answer. The API server waits 10 s by default."""
    read_seconds: float = 5.0
    """For a request's head, and again for its body."""
    certificate_check_seconds: float = 2.0
