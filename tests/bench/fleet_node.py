"""One process with many simulated nodes (or bare subscribers): a `Job` on stdin, `Said` lines on stdout, until stdin ends.

A node is the applier itself with its own directory, credential and connection; only nginx is simulated (see `simulated`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import time
from pathlib import Path
from unittest import mock

import msgspec
import psutil
from msgspec import Struct
from nats.aio.msg import Msg

from services.applier.agent import Agent
from services.applier.install import Installer
from services.applier.nodeconf import NodeSettings
from services.applier.options import ApplierOptions
from services.applier.service import serve
from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import NodeBus
from services.shared.bus.jetstream.connection import Connection
from services.shared.telemetry import logs
from services.shared.versions.read import digest_of
from tests.bench.simulated import Edge, SimulatedControl, SimulatedNginx

STARTING = 3
"""Nodes that start at once: all together would wait for each other's files and handshakes until they time out."""


class Job(Struct, frozen=True, kw_only=True):
    """What one process does."""

    nodes: list[str]
    directory: str
    """Each node has one in it, called as itself."""
    url: str
    ca: str
    credentials: str
    """A directory with `<node>.creds`; of subscribers, the file of all."""
    subject: str = ""
    """Not empty: no nodes, but so many connections that do nothing but hear this subject."""
    keep_rows: bool = False
    """To say what they come to."""

    def address(self, node: str) -> BusAddress:
        credentials = Path(self.credentials) if self.subject else Path(self.credentials, f"{node}.creds")
        return BusAddress(url=self.url, ca=Path(self.ca), credentials=credentials)


class NodeState(Struct, frozen=True, kw_only=True):
    node: str
    version: str
    digest: str
    rows_digest: str
    """Of the rows that were pushed; empty: they were not kept."""


class Said(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the process."""

    number: int = 0
    """0: all nodes are up, or an answer to `report`. Else the version (the message) that all of them have, completely."""
    times: list[float] = []
    """Unix seconds: since when, of each node."""
    memory: int = 0
    """Bytes resident."""
    empty: int = 0
    """The same before the first node."""
    nodes: list[NodeState] = []


class _Tally:
    """Who has reached what. Says each number once, when all have."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._last: dict[str, int] = {}
        self._times: dict[int, list[float]] = {}

    def note(self, who: str, number: int, at: float) -> None:
        """Whoever jumps over a number has it then as well."""
        for passed in range(self._last.get(who, number - 1) + 1, number + 1):
            times = self._times.setdefault(passed, [])
            times.append(at)
            if len(times) == self._count:
                _say(Said(number=passed, times=self._times.pop(passed)))
        self._last[who] = max(number, self._last.get(who, 0))


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


class _Node:
    def __init__(self, name: str, job: Job, tally: _Tally) -> None:
        self.name = name
        self.up = asyncio.Event()
        self._tally = tally
        directory, address = Path(job.directory, name), job.address(name)
        self._options = ApplierOptions(
            node=name,
            directory=directory,
            http_port=80,
            https_port=443,
            healthz_port=0,
            address="127.0.0.1",
            bus=address,
            stop_nginx=False,
        )
        self._bus = NodeBus(address, name=f"applier-{name}")
        self.edge = Edge(directory, self._live, keep_rows=job.keep_rows)
        self._agent = Agent(self._options, self._bus, SimulatedNginx(directory, self.edge), SimulatedControl(self.edge))

    def _live(self, version: str, digest: str, at: float) -> None:
        if digest:  # else rows wait for policies
            self._tally.note(self.name, int(version.partition(".")[2]), at)
            self.up.set()

    async def run(self, stop: asyncio.Event) -> None:
        await serve(self._bus, self._options, stop, self._agent)

    @property
    def state(self) -> NodeState:
        rows = digest_of(self.edge.rows).hex if self.edge.rows else ""
        return NodeState(node=self.name, version=self.edge.version, digest=self.edge.digest, rows_digest=rows)


class _Subscriber:
    """What NATS alone does."""

    def __init__(self, name: str, job: Job, tally: _Tally) -> None:
        self.name = name
        self.up = asyncio.Event()
        self.state = NodeState(node=name, version="", digest="", rows_digest="")
        self._subject = job.subject
        self._tally = tally
        self._heard = 0
        self._connection = Connection(job.address(name), name=name, reconnected=lambda: None)

    async def run(self, stop: asyncio.Event) -> None:
        await self._connection.open()
        await self._connection.subscribe(self._subject, self._take)
        self.up.set()
        await stop.wait()
        await self._connection.close()

    async def _take(self, msg: Msg) -> None:
        self._heard += 1
        self._tally.note(self.name, self._heard, time.time())


async def _probe(installer: Installer, settings: NodeSettings) -> str:
    """Each node's nginx serves at once. In one event loop with the others, a real request would run into its time limit."""
    return ""


async def _commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _main() -> None:
    commands = await _commands()
    job = msgspec.json.decode(await commands.readline(), type=Job)
    process, tally, stop = psutil.Process(), _Tally(len(job.nodes)), asyncio.Event()
    empty = process.memory_info().rss
    nodes: list[_Node | _Subscriber] = [_Subscriber(name, job, tally) if job.subject else _Node(name, job, tally) for name in job.nodes]
    gate = asyncio.Semaphore(STARTING)

    async def begin(node: _Node | _Subscriber) -> asyncio.Task[None]:
        async with gate:
            task = asyncio.create_task(node.run(stop))
            up = asyncio.create_task(node.up.wait())
            await asyncio.wait([task, up], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return task

    tasks = await asyncio.gather(*(begin(node) for node in nodes))
    gc.collect()
    _say(Said(memory=process.memory_info().rss, empty=empty))
    while await commands.readline():
        _say(Said(memory=process.memory_info().rss, empty=empty, nodes=[n.state for n in nodes]))
    stop.set()
    await asyncio.gather(*tasks)


def main() -> None:
    gc.set_threshold(200_000, 20, 50)  # as the services do
    os.environ.setdefault("SLUICE_LOG", "error")
    logs.configure("fleet")
    with contextlib.suppress(KeyboardInterrupt), mock.patch.object(Installer, "_probe", _probe):
        asyncio.run(_main())


if __name__ == "__main__":
    main()
