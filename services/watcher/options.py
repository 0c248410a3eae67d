"""What a watcher can be told."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from services.shared.bus.address import BusAddress
from services.shared.flags import Flags
from services.watcher.publish import MAX_DELTA_BYTES


class RegistrarOptions(Struct, frozen=True, kw_only=True):
    """What a registrar is told."""

    key: Path
    """A file: what it signs with. Read for each question."""
    accounts: dict[str, str]
    """Service accounts (`namespace/name`) whose pods are nodes -> the group of these."""


class WatcherOptions(Struct, frozen=True, kw_only=True):
    """See `sluice watcher --help`."""

    manifests: Path | None = None
    """The source is this directory. None: a Kubernetes API server."""
    kubeconfig: Path | None = None
    """How to reach that; None: as the pod's service account."""
    context: str = ""
    """Of the kubeconfig; empty: the current one."""
    election_namespace: str = "default"
    """Where the Lease is; a pod's own namespace."""
    seal_keys: Path
    """The directory of `keys.json`: what Secrets are sealed with."""
    bus: BusAddress = BusAddress()
    name: str = "watcher"
    """The key of its report; distinct for each watcher."""
    flags: Flags = Flags()
    groups: dict[str, Flags] = {}
    """Further groups of nodes -> their flags: whose Ingresses get which status."""
    max_delta_bytes: int = MAX_DELTA_BYTES
    """Larger objects are refused; keep it below the server's max_payload."""
    health_port: int = 0
    """`/healthz`, `/readyz`, `/metrics`; 0: none."""
    registrar: RegistrarOptions | None = None
    """Give nodes credentials that ask for them; None: they have theirs from elsewhere."""
    verify_seconds: float = 30.0
    """How often everything is looked at and a sync mark published, whatever events say (anti-entropy)."""
