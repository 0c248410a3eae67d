"""What a benchmark of many nodes needs: a bus as the product makes it, processes of simulated nodes on it, and versions for them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from services.cli.state import StateDirectory
from services.cli.supervisor.nats import prepare, prepare_seal
from services.compiler.commit import Change, Committer
from services.compiler.engine import Engine
from services.compiler.keys import Keys
from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.version import Manifest
from tests.bench.edge import compiled
from tests.bench.fleet_node import Job, NodeState, Said
from tests.bench.objects import delta, ingress_manifest, manifests, service_manifests
from tests.support.nats_cluster import NatsCluster
from tests.support.up import ROOT

PER_PROCESS = 250
GROUP = "default"
PATIENCE_SECONDS = 120
"""For one version; for the start, this much and a second for each node of a process."""


class Server(Struct, frozen=True, kw_only=True):
    """A bus that nodes may come to: one server, or several that are one cluster."""

    url: str
    ca: Path
    credentials: Path
    """A directory: `<who>.creds` of each node and service."""
    seal: Path
    """The sealing keys' directory."""
    replicas: int
    pids: list[int]

    def address(self, who: str) -> BusAddress:
        return BusAddress(url=self.url, credentials=self.credentials / f"{who}.creds", ca=self.ca, replicas=self.replicas)


@contextlib.asynccontextmanager
async def one_server(directory: Path, nodes: Sequence[str]) -> AsyncIterator[Server]:
    """As `sluice up` makes it: TLS, JetStream on disk, a credential for each node."""
    state = StateDirectory(directory / "state")
    state.nats.mkdir(parents=True)
    url = await asyncio.to_thread(prepare, state, nodes, GROUP)
    command = [str(Path(sys.executable).with_name("nats-server")), "-c", str(state.nats / "nats.conf")]
    with (directory / "nats.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Server(url=url, ca=state.nats / "ca.crt", credentials=state.credentials, seal=state.seal, replicas=1, pids=[process.pid])
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def three_servers(directory: Path, nodes: Sequence[str]) -> AsyncIterator[Server]:
    """As the chart makes them: routes over TLS, each stream in three copies."""
    async with NatsCluster(directory / "cluster") as cluster:
        for who in ("compiler", "webhook", *nodes):
            cluster.credential(who)
        prepare_seal(directory / "seal")
        yield Server(
            url=cluster.url,
            ca=cluster.ca,
            credentials=cluster.directory,
            seal=directory / "seal",
            replicas=len(cluster.members),
            pids=[member.pid for member in cluster.members],
        )


# --- the nodes


class Fleet:
    """Processes of nodes, or (`subject`) of bare subscribers. Use as an async context manager, which returns when all are up."""

    def __init__(self, server: Server, directory: Path, nodes: Sequence[str], *, subject: str = "", keep_rows: bool = False) -> None:
        self.nodes = nodes
        self._server = server
        self._directory = directory
        self._subject = subject
        self._keep_rows = keep_rows
        self._processes: list[asyncio.subprocess.Process] = []
        self.started: list[Said] = []

    async def __aenter__(self) -> Fleet:
        try:
            shares = [self.nodes[at : at + PER_PROCESS] for at in range(0, len(self.nodes), PER_PROCESS)]
            for share in shares:
                await self._start(share)
            self.started = await self._all(lambda s: s.number == 0, PATIENCE_SECONDS + PER_PROCESS)
        except BaseException:  # then nobody calls __aexit__
            await self.__aexit__()
            raise
        return self

    async def _start(self, nodes: Sequence[str]) -> None:
        credentials = self._server.credentials
        job = Job(
            nodes=list(nodes),
            directory=str(self._directory),
            url=self._server.url,
            ca=str(self._server.ca),
            credentials=str(credentials / "compiler.creds" if self._subject else credentials),
            subject=self._subject,
            keep_rows=self._keep_rows,
        )
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "tests.bench.fleet_node"]
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT, limit=1 << 24)
        self._processes.append(process)
        _input(process).write(msgspec.json.encode(job) + b"\n")

    async def __aexit__(self, *exc: object) -> None:
        for process in self._processes:
            _input(process).close()
            if not self.started:  # it would first start the rest
                process.kill()
        for process in self._processes:
            try:
                async with asyncio.timeout(60):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _all(self, true: Callable[[Said], bool], seconds: float) -> list[Said]:
        """The next line of each process of which this is true. Raises TimeoutError, and RuntimeError where a process has ended."""

        async def one(process: asyncio.subprocess.Process) -> Said:
            assert process.stdout is not None
            while line := await process.stdout.readline():
                said = msgspec.json.decode(line, type=Said)
                if true(said):
                    return said
            raise RuntimeError("a process of nodes has ended")

        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*(one(p) for p in self._processes)))

    async def reached(self, number: int) -> list[float]:
        """When each node had version (or message) `number` completely, unix seconds, in no order. Ask in ascending order."""
        return [at for said in await self._all(lambda s: s.number == number, PATIENCE_SECONDS) for at in said.times]

    async def states(self) -> list[NodeState]:
        for process in self._processes:
            _input(process).write(b"report\n")
        return [node for said in await self._all(lambda s: s.number == 0, PATIENCE_SECONDS) for node in said.nodes]

    @property
    def memory_per_node(self) -> float:
        """Bytes, once all were up: what a node adds to a process."""
        return sum(s.memory - s.empty for s in self.started) / len(self.nodes)

    def cpu_seconds(self) -> float:
        return cpu_seconds([p.pid for p in self._processes])


def _input(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    assert process.stdin is not None
    return process.stdin


def cpu_seconds(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


# --- the versions


class Releases:
    """A compiler's core: engine and committer, without the waiting in between."""

    def __init__(self, bus: JetStreamBus, keys: Keys, ingresses: int, nodes: int) -> None:
        self._nodes = nodes
        self._ingresses = ingresses
        self._engine: Engine = compiled(manifests(ingresses))
        self._committer = Committer(bus, GROUP, keys.group)

    async def first(self) -> Manifest:
        await self._committer.start()
        return await self._commit(self._engine.rows, ())

    async def change(self, step: int) -> Manifest:
        """Rows only: an endpoint or an annotation that is a row."""
        i = (step * 7919) % self._ingresses
        if step % 2:
            return await self.put(service_manifests(i, f"127.0.0.{2 + step % 200}", 9000)[1], step)
        return await self.put(ingress_manifest(i, {"upstream-vhost": f"v{step}.example.com"}), step)

    async def policy(self, step: int) -> Manifest:
        """A location policy that no node has."""
        return await self.put(ingress_manifest(1, {"proxy-read-timeout": str(100 + step)}), step)

    async def put(self, manifest: dict[str, Any], step: int) -> Manifest:
        self._engine.apply(delta(manifest, version=str(step + 2)))
        out = self._engine.compile()
        return await self._commit(out.upsert, out.delete)

    async def _commit(self, upsert: dict[str, bytes], delete: tuple[str, ...]) -> Manifest:
        change = Change(rows=self._engine.rows, upsert=upsert, delete=delete, bundle=self._engine.bundle, nodes=self._nodes)
        manifest = await self._committer.commit(change)
        if manifest is None:
            raise RuntimeError("a change changed nothing")
        return manifest


@contextlib.asynccontextmanager
async def releases(server: Server, ingresses: int, nodes: int) -> AsyncIterator[Releases]:
    """With the compiler's credential; nodes get their sealing keys meanwhile."""
    async with JetStreamBus(server.address("compiler"), name="bench-compiler") as bus:
        await bus.ensure()
        keys = Keys(bus, GROUP, server.seal)
        tasks = [asyncio.create_task(work) for work in keys.handing_out()]
        try:
            yield Releases(bus, keys, ingresses, nodes)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
