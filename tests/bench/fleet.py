"""Many nodes on one bus: from the commit of a version until it is live on all of them, against NATS alone with the same bytes.

The nodes are simulated (fleet_node.py): the applier's own code down to the port of nginx. Server, credentials and TLS are what the product
makes. All of it shares this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from msgspec import Struct

from services.shared.bus.jetstream.connection import Connection
from services.shared.contracts.subjects import ASK_COMPILER_ADMIT, of_group
from services.shared.contracts.version import Manifest, encode_manifest
from tests.bench.fleet_rig import GROUP, Fleet, Releases, Server, cpu_seconds, one_server, releases, three_servers
from tests.bench.results import Result, judged, percentile, reported

NODES = 1_000
NODES_ON_THREE = 250
VERSIONS = 100
INGRESSES = 200
SETTLE_SECONDS = 0.5
"""From live on all to the next version: the nodes' reports of this one are still on their way."""
IDLE_SECONDS = 10.0
ALONE = of_group(ASK_COMPILER_ADMIT, GROUP)
"""A subject that one service may publish and another one hear, for NATS alone."""


class Size(Struct, frozen=True, kw_only=True):
    nodes: int
    versions: int
    ingresses: int


class Spread:
    """Of many messages: milliseconds until each receiver had it, and until the last one had."""

    def __init__(self) -> None:
        self.each: list[float] = []
        self.last: list[float] = []

    def note(self, since: float, times: Sequence[float]) -> None:
        """Unix seconds."""
        took = [(at - since) * 1000 for at in times]
        self.each += took
        self.last.append(max(took))


class Cpu(Struct, frozen=True):
    """CPU seconds, of all nodes and of the servers."""

    nodes: float
    servers: float

    @classmethod
    def now(cls, fleet: Fleet, server: Server) -> Cpu:
        return cls(fleet.cpu_seconds(), cpu_seconds(server.pids))

    def since(self, before: Cpu, rest: float = 0.0, at_rest: Cpu | None = None) -> Cpu:
        """What was used more than `at_rest` in each of `rest` seconds."""
        idle = at_rest or Cpu(0.0, 0.0)
        return Cpu(self.nodes - before.nodes - rest * idle.nodes, self.servers - before.servers - rest * idle.servers)


class Rows(Struct, kw_only=True):
    """What a row of versions did."""

    spread: Spread
    payloads: list[bytes]
    idle: Cpu
    """In a second, with nothing to do."""
    busy: Cpu
    """For all versions, above that."""


# --- the measurements


async def _idle(fleet: Fleet, server: Server) -> Cpu:
    before = Cpu.now(fleet, server)
    await asyncio.sleep(IDLE_SECONDS)
    used = Cpu.now(fleet, server).since(before)
    return Cpu(used.nodes / IDLE_SECONDS, used.servers / IDLE_SECONDS)


async def _rows(release: Releases, fleet: Fleet, server: Server, count: int) -> Rows:
    """So many versions of rows, each when the one before is live everywhere."""
    spread, payloads, idle = Spread(), list[bytes](), await _idle(fleet, server)
    before, began = Cpu.now(fleet, server), time.time()
    for step in range(count):
        manifest = await release.change(step)
        payloads.append(encode_manifest(manifest))
        spread.note(manifest.committed_at, await fleet.reached(manifest.number))
        if step % 10 == 9:
            _progress(f"version {step + 1} of {count}: live on all after {spread.last[-1]:.0f} ms")
        await asyncio.sleep(SETTLE_SECONDS)
    busy = Cpu.now(fleet, server).since(before, time.time() - began, idle)
    return Rows(spread=spread, payloads=payloads, idle=idle, busy=busy)


async def _policy(release: Releases, fleet: Fleet, step: int) -> Spread:
    """One new policy on all nodes at once; all of them must have the head's content then."""
    manifest: Manifest = await release.policy(step)
    spread = Spread()
    spread.note(manifest.committed_at, await fleet.reached(manifest.number))
    if {s.digest for s in await fleet.states()} != {manifest.digest}:
        raise RuntimeError("not all nodes have the content of the head")
    return spread


async def _alone(server: Server, payloads: Sequence[bytes], fleet: Fleet) -> Spread:
    """The same bytes over the same server and TLS to as many connections, which only note the time."""
    connection, spread = Connection(server.address("webhook"), name="bench-publisher", reconnected=lambda: None), Spread()
    await connection.open()
    try:
        await asyncio.sleep(1)
        for number, payload in enumerate(payloads, 1):
            began = time.time()
            await connection.client.publish(ALONE, payload)
            await connection.client.flush()
            spread.note(began, await fleet.reached(number))
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
    return spread


async def measure(server: Server, directory: Path, size: Size, label: str) -> list[Result]:
    names = [f"edge-{n}" for n in range(size.nodes)]
    head = f"{size.nodes:,} simulated nodes{label}"
    async with releases(server, size.ingresses, size.nodes) as release:
        await release.first()
        began = time.time()
        async with Fleet(server, directory / "nodes", names) as fleet:
            start = reported(
                f"{head}: start of all", time.time() - began, "s", "one connection each; version and keys fetched, files written"
            )
            _progress(f"{size.nodes} nodes are up after {start.value:.0f} s")
            memory = _memory(head, fleet, server, size)
            rows = await _rows(release, fleet, server, size.versions)
            _progress("a policy")
            policy = await _policy(release, fleet, size.versions)
    _progress("the same bytes over NATS alone")
    async with Fleet(server, directory, names, subject=ALONE) as subscribers:
        alone = await _alone(server, rows.payloads, subscribers)
    return [*_judge(head, size, rows, alone), _of_policy(head, policy), memory, start]


# --- what they say


def _memory(head: str, fleet: Fleet, server: Server, size: Size) -> Result:
    nats = sum(psutil.Process(p).memory_info().rss for p in server.pids) / 1e6
    words = f"{size.ingresses} Ingresses; without Python and its modules; NATS: {nats:.0f} MB"
    return reported(f"{head}: memory of a node", fleet.memory_per_node / 1e6, "MB", words)


def _judge(head: str, size: Size, rows: Rows, alone: Spread) -> list[Result]:
    each, last, bytes_ = rows.spread.each, rows.spread.last, sum(map(len, rows.payloads)) / len(rows.payloads)
    spread = (
        f"{size.versions} versions of {bytes_:,.0f} bytes; on the last node: p50 {percentile(last, 0.5):.0f}, p99 {percentile(last, 0.99):.0f} ms;"
        f" load {os.getloadavg()[0]:.1f}"
    )
    p50, p99 = percentile(alone.each, 0.5), percentile(alone.each, 0.99)
    version = f"receive to reported; NATS: {rows.busy.servers / size.versions * 1000:.0f} ms for all"
    rest = f"heartbeats and looks at the bus; NATS: {rows.idle.servers * 1000:.0f} ms/s for all"
    return [
        reported(f"{head}: commit to live, p50", percentile(each, 0.5), "ms", spread),
        judged(f"{head}: commit to live, p99", percentile(each, 0.99), "ms", "<=", 250, spread),
        reported(f"{head}: p99 against NATS alone", percentile(each, 0.99) / p99, "x", f"NATS alone: p50 {p50:.1f}, p99 {p99:.1f} ms"),
        reported(f"{head}: CPU of a node for a version", rows.busy.nodes / size.versions / size.nodes * 1000, "ms", version),
        reported(f"{head}: CPU of a node at rest", rows.idle.nodes / size.nodes * 1000, "ms/s", rest),
    ]


def _of_policy(head: str, policy: Spread) -> Result:
    words = f"p50 {percentile(policy.each, 0.5):.0f} ms; all at once, without nginx's test and reload"
    return reported(f"{head}: commit of a new policy to live on all", policy.last[0], "ms", words)


def _progress(words: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {words}", flush=True)


# --- the commands

Servers = Callable[[Path, Sequence[str]], contextlib.AbstractAsyncContextManager[Server]]


def _run(arguments: Sequence[str], name: str, nodes: int, servers: Servers, label: str) -> list[Result]:
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench {name}")
    parser.add_argument("--nodes", type=int, default=nodes)
    parser.add_argument("--versions", type=int, default=VERSIONS)
    parser.add_argument("--ingresses", type=int, default=INGRESSES)
    options = parser.parse_args(arguments)
    size = Size(nodes=options.nodes, versions=options.versions, ingresses=options.ingresses)

    async def run() -> list[Result]:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
            async with servers(Path(scratch), [f"edge-{n}" for n in range(size.nodes)]) as server:
                return await measure(server, Path(scratch), size, label)

    return asyncio.run(run())


def fleet(arguments: Sequence[str] = ()) -> list[Result]:
    return _run(arguments, "fleet", NODES, one_server, "")


def fleet3(arguments: Sequence[str] = ()) -> list[Result]:
    """The same on three servers: fewer nodes, since these take the cores that the nodes need."""
    return _run(arguments, "fleet3", NODES_ON_THREE, three_servers, " on 3 servers, R=3")
