"""nginx with rows against nginx with hand-written blocks: throughput, CPU per request, memory; and what many policies cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import psutil

from services.applier.control import Control
from tests.bench.edge import compiled, edge, write_node
from tests.bench.load import Load, wrk
from tests.bench.objects import host, ingress_manifest, manifests, service_manifests
from tests.bench.results import Result, judged, reported
from tests.bench.static import backend_conf, nginx, static_conf
from tests.support.nats import free_port

ROUNDS = 5
SECONDS = 4

QUIET = {"disable-access-log": "true"}
"""The static blocks log nothing; neither does the other side."""


def _pinned(pid: int, core: int) -> None:
    for process in (psutil.Process(pid), *psutil.Process(pid).children()):
        process.cpu_affinity([core])


def throughput(hosts: int) -> list[Result]:
    """Alternating rounds on the same machine; the ratio of each pair, and their median."""
    names = [host(i) for i in range(hosts)]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        root = Path(scratch)
        backend_port, static_port, edge_port = free_port(), free_port(), free_port()
        engine = compiled(manifests(hosts, port=backend_port), QUIET)
        for name in ("backend", "static"):
            (root / name).mkdir()
        with (
            nginx(root / "backend", backend_conf(root / "backend", backend_port), backend_port) as backend,
            nginx(root / "static", static_conf(root / "static", static_port, names, backend_port), static_port) as static,
            edge(root / "edge", engine, edge_port) as sluice,
        ):
            _pinned(backend.master, 1)
            for running in (static, sluice):
                _pinned(running.master, 0)
            loads: dict[str, list[Load]] = {"static": [], "sluice": []}
            for running in (static, sluice):
                wrk(running.port, names, running.workers(), root, seconds=2)  # warm caches and connections
            for n in range(ROUNDS):
                pair = [("static", static), ("sluice", sluice)]
                for name, running in pair if n % 2 == 0 else reversed(pair):
                    loads[name].append(wrk(running.port, names, running.workers(), root, seconds=SECONDS))
    if any(load.errors for both in loads.values() for load in both):
        raise RuntimeError(f"errors under load: {loads}")
    rate = [b.requests_per_second / a.requests_per_second for a, b in zip(loads["static"], loads["sluice"], strict=True)]
    cpu = [b.cpu_microseconds_per_request / a.cpu_microseconds_per_request for a, b in zip(loads["static"], loads["sluice"], strict=True)]
    base, ours = loads["static"], loads["sluice"]
    detail = (
        f"{statistics.median(x.requests_per_second for x in ours):,.0f} against {statistics.median(x.requests_per_second for x in base):,.0f} requests/s;"
        f" pairs {min(rate):.2f}-{max(rate):.2f}"
    )
    spent = (
        f"{statistics.median(x.cpu_microseconds_per_request for x in ours):.1f} against "
        f"{statistics.median(x.cpu_microseconds_per_request for x in base):.1f} µs; pairs {min(cpu):.2f}-{max(cpu):.2f}"
    )
    return [
        judged(f"requests/s at {hosts:,} hosts, against static blocks", statistics.median(rate), "x", ">=", 0.95, detail),
        reported(f"CPU per request at {hosts:,} hosts, against static blocks", statistics.median(cpu), "x", spent),
    ]


def memory(hosts: int = 20_000) -> list[Result]:
    """Resident memory of a worker after every host was asked for once."""
    names = [host(i) for i in range(hosts)]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        root = Path(scratch)
        backend_port, static_port, edge_port = free_port(), free_port(), free_port()
        for name in ("backend", "static"):
            (root / name).mkdir()
        sizes = {}
        with nginx(root / "backend", backend_conf(root / "backend", backend_port), backend_port):
            began = time.perf_counter()
            with nginx(root / "static", static_conf(root / "static", static_port, names, backend_port), static_port) as static:
                static_start = time.perf_counter() - began
                wrk(static.port, names, static.workers(), root, seconds=5)
                sizes["static"] = static.memory_per_process()
            engine = compiled(manifests(hosts, port=backend_port), QUIET)
            began = time.perf_counter()
            with edge(root / "edge", engine, edge_port) as sluice:
                edge_start = time.perf_counter() - began
                wrk(sluice.port, names, sluice.workers(), root, seconds=5)
                sizes["sluice"] = sluice.memory_per_process()
    detail = f"{sizes['sluice'] / 1e6:.0f} MB against {sizes['static'] / 1e6:.0f} MB, after 5 s of random requests to all hosts"
    return [
        judged(
            f"memory per nginx process at {hosts:,} hosts, against static blocks", sizes["sluice"] / sizes["static"], "x", "<=", 0.1, detail
        ),
        reported(f"start of nginx at {hosts:,} hosts", edge_start, "s", f"static blocks: {static_start:.1f} s"),
    ]


async def policies(count: int = 1_000) -> list[Result]:
    """A reload with so many distinct location policies."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        root = Path(scratch)
        port = free_port()
        few = [*service_manifests(0, "127.0.0.1", 9000), ingress_manifest(0)]
        many = [*few, *(ingress_manifest(i, {"proxy-read-timeout": str(1000 + i)}) for i in range(1, count + 1))]
        small, large = compiled(iter(few), QUIET), compiled(iter(many), QUIET)
        took = {}
        with edge(root / "edge", small, port) as running:
            before = running.memory_per_process()
            for generation, engine in ((2, small), (3, large)):
                settings = write_node(root / "edge", engine, port)
                node = root / "edge" / "versions" / "1" / "node.json"
                node.write_bytes(node.read_bytes().replace(b'"generation":1,', f'"generation":{generation},'.encode()))
                control = Control(settings.control_socket)
                began = time.perf_counter()
                psutil.Process(running.master).send_signal(1)
                while True:
                    answer = await control.generation()
                    if answer is not None and answer.generation == generation:
                        break
                took[generation] = time.perf_counter() - began
            after = running.memory_per_process()
    return [
        reported(f"reload with {count:,} distinct policies", took[3] * 1000, "ms", f"with one policy: {took[2] * 1000:.0f} ms"),
        reported(
            f"memory per nginx process with {count:,} distinct policies", after / 1e6, "MB", f"with one policy: {before / 1e6:.0f} MB"
        ),
    ]


def dataplane() -> list[Result]:
    import asyncio

    return [*throughput(10), *throughput(10_000), *memory(), *asyncio.run(policies())]
