"""One applier process with its nginx, a bus, and a compiler's core in this process: a node that tests kill, stop, lie to and starve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from services.compiler.commit import Change, Committer
from services.compiler.engine import Engine
from services.compiler.keys import Keys
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.report import NodeReport, decode_node_report
from services.shared.contracts.subjects import NODES_BUCKET
from services.shared.contracts.version import Manifest, Policy, PolicyBundle, policy_hash
from services.shared.flags import Flags
from tests.support.backends import backends
from tests.support.compiling import CLASS, upsert
from tests.support.nats import NatsServer, free_port
from tests.support.objects import ingress, service
from tests.support.sealing import handing_out
from tests.support.up import ROOT, get

PROGRAM = (sys.executable, "-m", "services.cli")
NEW_POLICY = {"proxy-read-timeout": "77"}


def _edited(policy: Policy, text: str) -> Policy:
    return Policy(hash=policy_hash(policy.scope, text), scope=policy.scope, text=text)


class Rig:
    """One applier process, a bus, and a compiler's core in this process."""

    def __init__(
        self,
        directory: Path,
        server: NatsServer,
        bus: JetStreamBus,
        keys: Keys,
        port: int,
        node_directory: Path | None = None,
        flags: Flags | None = None,
    ) -> None:
        self.directory = node_directory or directory / "node"
        self.server = server
        self.nats_url = server.url
        """By which the applier comes to the bus."""
        self.bus = bus
        self.http, self.https, self.health = free_port(), free_port(), free_port()
        self.engine = Engine(flags or Flags())
        self.committer = Committer(bus, "default", keys.group)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log = (directory / "applier.log").open("ab")
        for obj in (CLASS, *service("web", [port])):
            self.engine.apply(upsert(obj))

    async def commit(self, host: str, annotations: dict[str, str] | None = None, edit: Callable[[str], str] = str) -> Manifest:
        """A version that serves this host. `edit`: of the text of its global policies."""
        self.engine.apply(upsert(ingress("web", {host: {"/": "web"}}, annotations=annotations)))
        out = self.engine.compile()
        bundle = PolicyBundle(policies=tuple(p if p.scope == "location" else _edited(p, edit(p.text)) for p in out.bundle.policies))
        change = Change(rows=self.engine.rows, upsert=out.upsert, delete=out.delete, bundle=bundle)
        manifest = await self.committer.commit(change)
        assert manifest is not None
        return manifest

    def start(self, failpoint: str = "", prefix: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        """`prefix`: a command that changes something and runs the applier (`prlimit ...`); `program`: another `sluice`."""
        command = [
            *prefix,
            *(*program, "applier", "--node", "n", "--directory", str(self.directory)),
            *("--http-port", str(self.http), "--https-port", str(self.https), "--health-port", str(self.health)),
            *("--nats-url", self.nats_url),
        ]
        environment = {**os.environ, "SLUICE_FAILPOINT": failpoint}
        self._started = time.time()
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log)

    @property
    def pid(self) -> int:
        """Of the applier."""
        assert self._process is not None
        return self._process.pid

    def add(self, name: str, ports: Sequence[int], host: str, annotations: Mapping[str, str]) -> None:
        """One more Ingress with its Service; the next commit has it."""
        for obj in (*service(name, ports), ingress(name, {host: {"/": name}}, annotations=annotations)):
            self.engine.apply(upsert(obj))

    async def ended(self) -> int:
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, 30)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def report(self, true: Callable[[NodeReport], bool]) -> NodeReport:
        """The first report of which this is true, of the process that was started last."""
        async with asyncio.timeout(30):
            while True:
                found = (await self.bus.entries(NODES_BUCKET)).get("n")
                report = decode_node_report(found) if found else None
                if report is not None and report.at >= self._started and true(report):
                    return report
                await asyncio.sleep(0.02)

    async def live(self, manifest: Manifest) -> NodeReport:
        return await self.report(
            lambda r: (r.epoch, r.number, r.digest, r.deferred_count) == (manifest.epoch, manifest.number, manifest.digest, 0)
        )

    async def status(self, host: str) -> int:
        return (await asyncio.to_thread(get, self.http, host))[0]

    @property
    def nginx(self) -> psutil.Process:
        return psutil.Process(int((self.directory / "run" / "nginx.pid").read_text()))

    def workers(self) -> list[psutil.Process]:
        """Those that serve."""
        return [worker for worker, title in self._titles() if "shutting down" not in title]

    def draining(self) -> list[psutil.Process]:
        """Those of older generations, that only end what they have."""
        return [worker for worker, title in self._titles() if "shutting down" in title]

    def _titles(self) -> Iterator[tuple[psutil.Process, str]]:
        for worker in self.nginx.children():
            with contextlib.suppress(psutil.Error):  # it may end at any time
                yield worker, " ".join(worker.cmdline())

    async def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            await self.ended()
        for process in psutil.process_iter(["cmdline"]):
            if str(self.directory) in " ".join(process.info["cmdline"] or []):
                for child in process.children():
                    child.kill()
                process.kill()
        self._log.close()


@contextlib.asynccontextmanager
async def one_node(directory: Path, node_directory: Path | None = None, flags: Flags | None = None) -> AsyncIterator[Rig]:
    """Not started yet. `flags`: the compiler's."""
    with backends("web") as ports:
        async with NatsServer(directory / "nats") as server, JetStreamBus(server.url, name="test") as bus:
            await bus.ensure()
            async with handing_out(bus, directory / "seal") as keys:
                made = Rig(directory, server, bus, keys, ports["web"], node_directory, flags)
                await made.committer.start()
                try:
                    yield made
                finally:
                    await made.close()


async def running(rig: Rig) -> Manifest:
    first = await rig.commit("one.example.com")
    rig.start()
    await rig.live(first)
    return first


async def or_nothing(rig: Rig, host: str) -> int:
    try:
        return await rig.status(host)
    except OSError:
        return 0
