"""The embedded nats-server: its configuration, its certificate, and a credential for each who may come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.cli.state import StateDirectory
from services.cli.supervisor.ports import free_port, is_free
from services.shared.files import write_atomically
from services.shared.natsauth.authority import Authority
from services.shared.natsauth.roles import ROLES
from services.shared.sealing.keyfile import FILE as SEAL_FILE
from services.shared.sealing.ring import encode_keys, new_key
from services.webhook.certificate import make_certificate

MAX_PAYLOAD: Final = 8 * 1024 * 1024
"""Bytes. nats-server's default (1 MiB) is smaller than the largest legal Kubernetes object (1.5 MiB)."""


def prepare(state: StateDirectory, nodes: Sequence[str], group: str) -> str:
    """Make what is missing; returns the server's URL. Raises BadAuthority, OSError.

    The port of last time is used again unless someone else has it now.
    """
    port = _port(state.nats / "port")
    authority = Authority.at(state.nats)
    make_certificate(state.nats)
    write_atomically(state.nats / "nats.conf", configuration(state, port, authority).encode(), mode=0o600)
    _issue(state, authority, nodes, group)
    prepare_seal(state.seal)
    return f"tls://127.0.0.1:{port}"


def prepare_seal(directory: Path) -> None:
    """The first sealing key."""
    directory.mkdir(exist_ok=True, mode=0o700)
    if not (directory / SEAL_FILE).exists():
        write_atomically(directory / SEAL_FILE, encode_keys([new_key(time.time())]), mode=0o600)


def _port(file: Path) -> int:
    try:
        port = int(file.read_text())
    except (OSError, ValueError):
        port = 0
    if not 1024 <= port <= 65535 or not is_free(port):
        port = free_port()
        write_atomically(file, f"{port}\n".encode())
    return port


def health_url(state: StateDirectory) -> str:
    """200 while the server works and can store."""
    return f"http://127.0.0.1:{int((state.nats / 'monitor-port').read_text())}/healthz"


def _issue(state: StateDirectory, authority: Authority, nodes: Sequence[str], group: str) -> None:
    state.credentials.mkdir(exist_ok=True, mode=0o700)
    for role in ROLES:
        write_atomically(state.credential(role), authority.service(role).encode(), mode=0o600)
    for node in nodes:
        file = state.credential(node)
        present = file.read_text() if file.exists() else ""
        wanted = authority.node(node, group, present)
        if wanted != present:
            write_atomically(file, wanted.encode(), mode=0o600)


def configuration(state: StateDirectory, port: int, authority: Authority) -> str:
    return (
        f'listen: "127.0.0.1:{port}"\n'
        f'http: "127.0.0.1:{_port(state.nats / "monitor-port")}"\n'
        "server_name: sluice\n"
        f"max_payload: {MAX_PAYLOAD}\n"
        f'tls {{ cert_file: "{state.nats / "tls.crt"}", key_file: "{state.nats / "tls.key"}", timeout: 5 }}\n'
        f'jetstream {{ store_dir: "{state.nats / "store"}", max_memory_store: 256MB, max_file_store: 8GB, sync_interval: 10s }}\n'
        "write_deadline: 10s\n"
        f"{authority.server_configuration(state.nats / 'accounts')}"
    )
