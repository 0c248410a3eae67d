"""What an applier can be told."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from services.shared.bus.address import BusAddress
from services.shared.flags import Flags


class EnrolOptions(Struct, frozen=True, kw_only=True):
    """How a node gets a credential of its own."""

    token: Path
    """A file: the pod's token, read for each question (the kubelet replaces it)."""


class ApplierOptions(Struct, frozen=True, kw_only=True):
    """See `sluice applier --help`."""

    node: str
    """Its name: the key of its report."""
    directory: Path
    """The node's directory: versions, last known good, nginx's prefix."""
    http_port: int
    https_port: int
    healthz_port: int
    bus: BusAddress = BusAddress()
    """With `enrol`, its credential is good for asking for another."""
    enrol: EnrolOptions | None = None
    """None: the bus' credential is the node's own."""
    group: str = "default"
    nginx: str = "/usr/sbin/nginx"
    address: str = ""
    """Listen on this address only."""
    stream_port_offset: int = 0
    """Added to the ports of TCP and UDP services, where several nodes share a machine."""
    flags: Flags = Flags()
    drain_seconds: float = 5.0
    """For nginx to finish what it has begun, at a clean stop; then it is killed."""
    stop_nginx: bool = True
    """Whether nginx ends with a clean stop of the applier. A killed applier always leaves it running."""
    min_free_bytes: int = 64 * 1024 * 1024
    """Updates are refused before anything is touched while the disk has less."""
    max_tables_bytes: int = 1024 * 1024 * 1024
    """A version whose rows need more table memory is refused. 20,000 hosts take 128 MiB."""
