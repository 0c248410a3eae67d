"""The embedded nats-server: its configuration, and the port and password it keeps for as long as the state directory lives."""

from __future__ import annotations

import secrets
from typing import Final

from services.cli.state import StateDirectory, write_atomically
from services.cli.supervisor.ports import free_port, is_free

MAX_PAYLOAD: Final = 8 * 1024 * 1024
"""Bytes. nats-server's default (1 MiB) is smaller than the largest legal Kubernetes object (1.5 MiB)."""
USER: Final = "sluice"


def prepare(state: StateDirectory) -> str:
    """Write nats.conf; returns the URL, password included: who can read this directory may speak to the bus, nobody else here.

    The port of last time is used again unless someone else has it now.
    """
    port_file, password_file = state.nats / "port", state.nats / "password"
    try:
        port = int(port_file.read_text())
    except (OSError, ValueError):
        port = 0
    if not 1024 <= port <= 65535 or not is_free(port):
        port = free_port()
        write_atomically(port_file, f"{port}\n".encode())
    try:
        password = password_file.read_text().strip()
    except OSError:
        password = ""
    if len(password) < 32:
        password = secrets.token_hex(16)
        write_atomically(password_file, password.encode(), mode=0o600)
    write_atomically(state.nats / "nats.conf", configuration(state, port, password).encode(), mode=0o600)
    return f"nats://{USER}:{password}@127.0.0.1:{port}"


def configuration(state: StateDirectory, port: int, password: str) -> str:
    return (
        f'listen: "127.0.0.1:{port}"\n'
        "server_name: sluice\n"
        f"max_payload: {MAX_PAYLOAD}\n"
        f'authorization {{ user: {USER}, password: "{password}" }}\n'
        f'jetstream {{ store_dir: "{state.nats / "store"}", max_memory_store: 256MB, max_file_store: 8GB, sync_interval: 10s }}\n'
        "write_deadline: 10s\n"
    )
