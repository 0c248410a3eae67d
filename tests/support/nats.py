"""A real nats-server with JetStream in a temporary directory, which tests kill, wipe and start again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_ports = itertools.cycle(random.sample(range(10_000 + 5_500 * (_WORKER % 4), 15_500 + 5_500 * (_WORKER % 4), 10), 550))
"""Below those that connections get, which would take a port between its choice and its use; others for each test process."""


def free_port() -> int:
    """One that nobody has, nor the nine after it by this."""
    while True:
        port = next(_ports)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class NatsServer:
    """Use as an async context manager; `url` is where it listens, also after a restart."""

    def __init__(self, directory: Path, *, max_payload: int = 8 * 1024 * 1024, more: str = "") -> None:
        """`more`: further lines of its configuration."""
        self.directory = directory
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._max_payload = max_payload
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> Path:
        return self.directory / "store"

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        conf = self.directory / "nats.conf"
        conf.write_text(
            f'listen: "127.0.0.1:{self.port}"\nmax_payload: {self._max_payload}\n'
            f'jetstream {{ store_dir: "{self.store}", max_memory_store: 256MB, max_file_store: 4GB }}\n'
            f"{self._more}"
        )
        binary = Path(sys.executable).with_name("nats-server")
        with (self.directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen([str(binary), "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=log)
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"nats-server ended: {(self.directory / 'nats.log').read_text()[-500:]}") from None
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def wipe(self) -> None:
        """As if the disk were gone. Stop it first."""
        shutil.rmtree(self.store, ignore_errors=True)

    async def __aenter__(self) -> NatsServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.kill()
