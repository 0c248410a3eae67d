"""The whole product on a real API server: first sync to live on two nodes with its parts, changes at a steady rate, memory.

kube-apiserver, etcd, the load, and all services share this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import psutil
from msgspec import Struct

from services.cli.state import StateDirectory
from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.report import Applied, decode_applied
from services.shared.contracts.subjects import APPLIED_STREAM, APPLIED_SUBJECTS
from services.shared.contracts.version import Manifest
from services.shared.versions.read import stored
from tests.bench.cluster_changes import Done, Plan, Sample, create_marker, served, under_change
from tests.bench.cluster_objects import Size, create
from tests.bench.results import Result, judged, percentile, reported
from tests.support.addresses import backend_address
from tests.support.backends import backends
from tests.support.kube import KubeServer
from tests.support.up import SluiceUp

SIZE = Size(ingresses=10_000, secrets=2_000)
NODES = 2
RATE = 100.0
SECONDS = 60.0
QUIET_SECONDS = 15.0
START_SECONDS = 240
SLOWEST = 5
"""Samples that are printed, to be looked for in the logs."""
SERVICES = ("nats", "watcher", "compiler", "webhook", "node-0", "node-1")

_LINE = re.compile(r"(?P<at>\S+)Z info \S+ \S+ (?P<words>.*)", re.ASCII)


class _Line(Struct, frozen=True):
    at: float
    words: str
    fields: dict[str, str]


def _fields(words: str) -> dict[str, str]:
    return {k: v.strip('"') for k, v in re.findall(r'(\S+?)=("[^"]*"|\S+)', words)}


def _lines(log: Path) -> Iterator[_Line]:
    """What a service logged."""
    for text in log.read_text().splitlines():
        found = _LINE.match(text)
        if found:
            at = datetime.datetime.fromisoformat(found["at"]).astimezone().timestamp()
            yield _Line(at, found["words"].partition("=")[0].rpartition(" ")[0], _fields(found["words"]))


# --- the first sync


async def _history(up: SluiceUp) -> tuple[list[Manifest], list[Applied]]:
    address = StateDirectory(up.state).bus(up.up()["nats"], "command")
    async with JetStreamBus(address, name="bench") as bus:
        return await stored(bus, "default"), [decode_applied(m.payload) for m in await bus.history(APPLIED_STREAM, APPLIED_SUBJECTS)]


def _parts(up: SluiceUp, began: float, manifests: Sequence[Manifest], applied: Sequence[Applied]) -> list[Result]:
    """Where the time of the first sync went, from what the services log and report."""
    logs = StateDirectory(up.state).logs
    watcher, compiler = list(_lines(logs / "watcher.log")), list(_lines(logs / "compiler.log"))
    listed = [line for line in watcher if line.words == "listed"]
    version = next(line for line in compiler if line.words == "version")
    manifest = next(m for m in manifests if str(m.id) == version.fields["id"])
    started = version.at - float(version.fields["ms"]) / 1000
    nodes = [a for a in applied if (a.epoch, a.number) == (manifest.epoch, manifest.number)]
    live = max(a.live_at for a in nodes)
    last = max(line.at for line in listed)
    kinds = ", ".join(f"{line.fields['objects']} {line.fields['kind']} in {float(line.fields['seconds']):.1f} s" for line in listed)
    return [
        reported("first sync: all kinds listed and decoded", last - began, "s", f"since the start, side by side: {kinds}"),
        reported("first sync: published", started - last, "s", "from the last list until the compiler has everything and its mark"),
        reported(
            "first sync: compiled after that",
            manifest.compiled_at - started,
            "s",
            f"{manifest.rows:,} rows, {manifest.row_bytes / 1e6:.0f} MB",
        ),
        reported("first sync: committed", version.at - manifest.compiled_at, "s", "checkpoint and manifest stored"),
        reported(
            "first sync: applied on both nodes",
            live - manifest.committed_at,
            "s",
            f"verified after {max(a.verified_at - a.received_at for a in nodes):.1f} s, live {max(a.live_at - a.verified_at for a in nodes):.1f} s later",
        ),
    ]


def _memory(up: SluiceUp, when: str) -> list[Result]:
    """Resident, of each service and of one node's nginx."""
    sizes = {name: up.child(name).memory_info().rss / 1e6 for name in SERVICES}
    sizes["up"] = psutil.Process(up.up()["pid"]).memory_info().rss / 1e6
    workers = [p.memory_info().rss / 1e6 for p in up.nginx(0).children()]
    nginx = f"{len(workers)} workers, shared memory counted in each; master {up.nginx(0).memory_info().rss / 1e6:.0f} MB"
    return [
        *(reported(f"memory of {name}, {when}", size, "MB") for name, size in sizes.items()),
        reported(f"memory of an nginx worker, {when}", max(workers), "MB", nginx),
    ]


# --- changes


def _judge(done: Done, samples: Sequence[Sample], quiet: Sequence[Sample], behind: float, size: Size) -> list[Result]:
    total = [s.served for s in samples]
    answered = [s.answered for s in samples]
    rest = [s.served - s.answered for s in samples]
    rate = done.written / done.seconds
    words = (
        f"{len(samples)} samples at {rate:.0f} changes/s ({done.failed} failed), {size}; from sending the write; of it the API server's"
        f" p50 {percentile(answered, 0.5):.0f}, p99 {percentile(answered, 0.99):.0f} ms, after its answer p50 {percentile(rest, 0.5):.0f},"
        f" p99 {percentile(rest, 0.99):.0f} ms; load {os.getloadavg()[0]:.1f}"
    )
    alone = [s.served for s in quiet]
    return [
        judged("API write to next request, p50", percentile(total, 0.5), "ms", "<=", 50, words),
        judged("API write to next request, p99", percentile(total, 0.99), "ms", "<=", 250, words),
        reported(
            "the same with no other changes, p50",
            percentile(alone, 0.5),
            "ms",
            f"{len(quiet)} samples; p99 {percentile(alone, 0.99):.0f} ms",
        ),
        reported("from the last of the changes to all live", behind, "s", "as `sluice wait` says"),
    ]


# --- the run


async def _measure(kube: KubeServer, root: Path, size: Size, rate: float, seconds: float, port: int) -> list[Result]:
    api = await kube.api()
    try:
        await create(api, size, backend_address(), port)
        await create_marker(api)
        return await _with_services(kube, root, size, Plan(size=size, rate=rate, seconds=seconds, port=port))
    finally:
        await api.close()


async def _with_services(kube: KubeServer, root: Path, size: Size, plan: Plan) -> list[Result]:
    api = await kube.api()
    up = SluiceUp(root, nodes=NODES, kubeconfig=kube.kubeconfig())
    try:
        began = time.time()
        await asyncio.to_thread(up.start, START_SECONDS)
        took = time.time() - began
        _progress(f"live on {NODES} nodes after {took:.1f} s")
        async with aiohttp.ClientSession() as session:
            await served(session, up.http[-1], "/m0")
        parts = _parts(up, began, *await _history(up))
        await asyncio.sleep(5)
        memory = _memory(up, "after the first sync")
        _, quiet = await under_change(api, kube.kubeconfig(), up.http[-1], Plan(size=size, rate=0, seconds=QUIET_SECONDS, port=0))
        _progress(f"{plan.rate:g} changes a second for {plan.seconds:g} s")
        before = _Cpu.now(up)
        done, samples = await under_change(api, kube.kubeconfig(), up.http[-1], plan)
        for slow in sorted(samples, key=lambda s: -s.served)[:SLOWEST]:
            when = datetime.datetime.fromtimestamp(slow.sent_at, datetime.UTC)
            _progress(f"sent at {when:%H:%M:%S.%f}, answered after {slow.answered:.0f} ms, served after {slow.served:.0f} ms")
        cpu, ended = _Cpu.now(up).since(before), time.time()
        await asyncio.to_thread(up.wait)
        behind = time.time() - ended
        memory += _memory(up, "after the changes")
    finally:
        await asyncio.to_thread(up.__exit__)
        await api.close()
    assert done is not None
    first = judged(f"first sync of {size} to live on {NODES} nodes", took, "s", "<=", 30, f"load {os.getloadavg()[0]:.1f}")
    return [first, *parts, *_judge(done, samples, quiet, behind, size), cpu, *memory]


class _Cpu(Struct, frozen=True):
    """CPU seconds so far, by what used them."""

    used: dict[str, float]
    busy: float
    """Of the whole machine, whoever used them."""
    at: float

    @classmethod
    def now(cls, up: SluiceUp) -> _Cpu:
        used = {name: _seconds(up.child(name)) for name in SERVICES}
        used["nginx"] = sum(_seconds(p) for n in range(NODES) for p in (up.nginx(n), *up.nginx(n).children()))
        own = psutil.Process()
        for child in own.children():
            if child.name() in ("etcd", "kube-apiserver"):
                used[child.name()] = _seconds(child)
        used["the bench"] = _seconds(own) + own.cpu_times().children_user + own.cpu_times().children_system
        times = psutil.cpu_times()
        return cls(used, sum(times) - times.idle - times.iowait - times.guest, time.monotonic())

    def since(self, before: _Cpu) -> Result:
        span = self.at - before.at
        shares = {name: (used - before.used[name]) / span for name, used in self.used.items()}
        all_of_it = (self.busy - before.busy) / span
        shares["others' processes"] = all_of_it - sum(shares.values())
        words = ", ".join(f"{name} {share:.2f}" for name, share in sorted(shares.items(), key=lambda s: -s[1]))
        return reported(f"cores in use under the changes, of {os.cpu_count()}", all_of_it, "cores", words)


def _seconds(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def _progress(words: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {words}", flush=True)


async def _run(size: Size, rate: float, seconds: float) -> list[Result]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, backends("app", address=backend_address()) as ports:
        async with KubeServer(Path(scratch) / "kube") as kube:
            return await _measure(kube, Path(scratch), size, rate, seconds, ports["app"])


def cluster(arguments: Sequence[str] = ()) -> list[Result]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench cluster")
    parser.add_argument("--ingresses", type=int, default=SIZE.ingresses)
    parser.add_argument("--secrets", type=int, default=SIZE.secrets)
    parser.add_argument("--rate", type=float, default=RATE, help="changes a second")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(arguments)
    return asyncio.run(_run(Size(ingresses=options.ingresses, secrets=options.secrets), options.rate, options.seconds))
