"""Three real nats-servers as one cluster, set up as the chart does it: routes over TLS, JetStream in three copies, users by JWT. Tests
kill, stop, wipe and start each of them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import nats.errors
import nats.js.errors

from services.cli.supervisor.nats import MAX_PAYLOAD
from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import JetStreamBus
from services.shared.natsauth.authority import Authority
from services.shared.natsauth.roles import Permissions, Role
from services.webhook.certificate import generate
from tests.support.nats import free_port

GROUP = "default"
ADMIN = "admin"
"""The user who may do everything: tests, and administrators who do what they should not."""


class Member:
    """One of the servers. `port` and `url` stay the same over restarts."""

    def __init__(self, name: str, directory: Path, store: Path | None = None) -> None:
        """`store`: where it keeps its streams; None: in `directory`."""
        self.name = name
        self.directory = directory
        self.store = store or directory / "store"
        self.port, self.route_port, self._monitor_port = free_port(), free_port(), free_port()
        self.url = f"tls://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Also while it is stopped."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.directory / "nats.log").read_text(errors="replace")

    def write_configuration(self, cluster: str, common: str) -> None:
        """`cluster`: the lines of its cluster block; `common`: what all have."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "nats.conf").write_text(
            f'server_name: "{self.name}"\nlisten: "127.0.0.1:{self.port}"\nhttp: "127.0.0.1:{self._monitor_port}"\n'
            f'jetstream {{ store_dir: "{self.store}", max_memory_store: 256MB, max_file_store: 4GB, sync_interval: 10s }}\n'
            f'cluster {{\n  listen: "127.0.0.1:{self.route_port}"\n{cluster}}}\n{common}'
        )

    def start(self) -> None:
        """Without waiting. It dies with the thread that starts it, however that ends."""
        binary = Path(sys.executable).with_name("nats-server")
        command = ["setpriv", "--pdeathsig", "KILL", str(binary), "-c", str(self.directory / "nats.conf")]
        with (self.directory / "nats.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)

    async def healthy(self, seconds: float = 60) -> None:
        """Wait until it says that it has all that the others have."""
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(self._answers, "/healthz"):
                if not self.running:
                    raise RuntimeError(f"{self.name} ended: {self.log[-1000:]}")
                await asyncio.sleep(0.1)

    async def is_alive(self) -> bool:
        """What the chart's liveness probe asks; a kubelet restarts a server that is not."""
        return await asyncio.to_thread(self._answers, "/healthz?js-enabled-only=true")

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._monitor_port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            return connection.getresponse().status == 200
        return False

    def stop(self) -> None:
        """It hangs: connections stay open, nothing is answered."""
        self._send(signal.SIGSTOP)

    def cont(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9; nothing happens to one that is not running."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wipe(self) -> None:
        """As if its disk were gone. Kill it first."""
        for entry in self.store.iterdir():
            shutil.rmtree(entry, ignore_errors=True)

    def _send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


class NatsCluster:
    """Use as an async context manager, which returns when the streams of `contracts.subjects` are made. At the end all are killed."""

    def __init__(self, directory: Path, *, stores: Sequence[Path | None] = (None, None, None)) -> None:
        """`stores`: one for each server; see Member."""
        self.directory = directory
        self.members = [Member(f"nats-{n}", directory / f"nats-{n}", store) for n, store in enumerate(stores)]
        self.url = ",".join(m.url for m in self.members)
        self.ca = directory / "ca.crt"
        self._authority: Authority | None = None

    async def __aenter__(self) -> NatsCluster:
        self._configure()
        try:
            await self.start()
            await self.ensured()
        except BaseException:  # then nobody calls __aexit__
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        for member in self.members:
            member.kill()

    def _configure(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        material = generate(("localhost", "127.0.0.1"), client=True)
        for name, content in (("ca.crt", material.ca), ("tls.crt", material.certificate), ("tls.key", material.key)):
            (self.directory / name).write_bytes(content)
        self._authority = Authority.at(self.directory)
        certificate = f'cert_file: "{self.directory / "tls.crt"}", key_file: "{self.directory / "tls.key"}", timeout: 5'
        routes = ", ".join(f'"nats://127.0.0.1:{m.route_port}"' for m in self.members)
        cluster = f'  name: sluice\n  tls {{ {certificate}, ca_file: "{self.ca}", verify: true }}\n  routes: [{routes}]\n'
        for member in self.members:
            common = (
                f"max_payload: {MAX_PAYLOAD}\nwrite_deadline: 10s\ntls {{ {certificate} }}\n"
                f"{self._authority.server_configuration(member.directory / 'accounts')}"
            )
            member.write_configuration(cluster, common)

    # --- how to come to it

    def credential(self, user: str) -> Path:
        """The credentials file of a service (a `Role`), of ADMIN, or else of the node with this name."""
        file = self.directory / f"{user}.creds"
        if not file.exists():
            file.write_text(self._issued(user))
        return file

    def _issued(self, user: str) -> str:
        assert self._authority is not None
        if user == ADMIN:
            everything = Permissions(publish=(">",), subscribe=(">",), answers=True)
            return self._authority._issue(ADMIN, everything, self._authority._keys.account)[0]
        for role in get_args(Role):
            if role == user:
                return self._authority.service(role)
        return self._authority.node(user, GROUP)

    def address(self, user: str = ADMIN) -> BusAddress:
        return BusAddress(url=self.url, credentials=self.credential(user), ca=self.ca, replicas=len(self.members))

    def arguments(self, user: str) -> tuple[str, ...]:
        """For the command line of a service."""
        where = ("--nats-url", self.url, "--nats-ca", str(self.ca), "--nats-replicas", str(len(self.members)))
        return (*where, "--nats-creds", str(self.credential(user)))

    def bus(self, user: str = ADMIN) -> JetStreamBus:
        """Not entered yet."""
        return JetStreamBus(self.address(user), name=user)

    # --- all of them

    async def start(self) -> None:
        """Those that do not run; returns when each has all that the others have."""
        for member in self.members:
            if not member.running:
                member.start()
        await asyncio.gather(*(member.healthy() for member in self.members))

    async def ensured(self) -> None:
        """Make the streams where they are missing; returns when a majority has them."""
        async with asyncio.timeout(60), self.bus() as bus:
            await bus.ensure()

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    async def leader(self, stream: str) -> Member:
        """Who leads a stream, once somebody does."""
        async with asyncio.timeout(60), self.bus() as bus:
            while True:
                with contextlib.suppress(nats.errors.Error, nats.js.errors.Error):
                    info = await bus._connection.js.stream_info(stream)
                    led = info.cluster.leader if info.cluster is not None else None
                    if led:
                        return next(m for m in self.members if m.name == led)
                await asyncio.sleep(0.1)
