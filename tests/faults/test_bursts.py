"""Ten times as much as usual, for ten seconds: changes coalesce, endpoints are not held up, limits shed, and afterwards all is as if it had
come slowly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import nats
import pytest
from nats.aio.client import Client

from services.compiler.hold import BETWEEN_SECONDS
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus, BusError
from services.shared.contracts.version import Manifest
from services.shared.versions import read
from services.webhook.certificate import make_certificate
from tests.support.backends import backends
from tests.support.clients import Connection, Tally, steady
from tests.support.cluster import Cluster
from tests.support.compiling import engine_of, small_world
from tests.support.faults import PeakMemory, Service, services
from tests.support.nats import NatsServer, free_port
from tests.support.objects import config_map, ingress, many, service
from tests.support.reviews import answer, review
from tests.support.sealing import key_directory
from tests.support.up import SluiceUp, get
from tests.support.versions import GROUP, content_of

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

MEGABYTE = 1 << 20
BURST_SECONDS = 10
PER_SECOND = 2000
APPS = 200

# --- changes


def _app(n: int, port: int) -> str:
    """Its Service has one endpoint; what changes is data."""
    name = f"app-{n}"
    return many(*service(name, [port]), ingress(name, {f"{name}.example.com": {"/": name}}, annotations={"upstream-vhost": "EDIT"}))


class Burst:
    """Many edits of few files, and what each file says in the end."""

    def __init__(self, up: SluiceUp, ports: list[int]) -> None:
        self._up = up
        self._ports = ports
        self._texts = {(n, port): _app(n, port) for n in range(APPS) for port in ports}
        self.written = 0
        self.last: dict[int, int] = {}
        """App -> the port of its endpoint."""

    def run(self) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < BURST_SECONDS:
            if self.written > passed * PER_SECOND:
                time.sleep(0.005)
                continue
            for _ in range(20):
                n = self.written % APPS
                self.last[n] = self._ports[self.written // APPS % 2]
                self._up.write(f"app-{n}.yaml", self._texts[n, self.last[n]].replace("EDIT", f"v{self.written}"))
                self.written += 1


def _number(up: SluiceUp) -> int:
    """Of the newest version."""
    return int(up.status()["version"].split(".")[1])


async def test_2000_changes_a_second_coalesce_and_delay_no_endpoint(tmp_path: Path) -> None:
    with backends("a", "b") as ports, SluiceUp(tmp_path, nodes=2) as up:
        for n in range(APPS):
            up.write(f"app-{n}.yaml", _app(n, ports["a"]))
        up.write("probe.yaml", many(*service("probe", [ports["a"]]), ingress("probe", {"probe.example.com": {"/": "probe"}})))
        await asyncio.to_thread(up.wait)
        began = time.monotonic()
        before, reloads = await asyncio.to_thread(_number, up), sum(await asyncio.to_thread(up.reloads))
        burst = Burst(up, [ports["a"], ports["b"]])
        with PeakMemory(up.child("watcher")) as watcher, PeakMemory(up.child("compiler")) as compiler:
            async with steady(up.http, "probe.example.com", lambda a: a.status == 200, per_second=50, connections=2) as tally:
                flood = asyncio.create_task(asyncio.to_thread(burst.run))
                waited = [seconds async for seconds in _endpoint_changes(up, ports, flood)]
                await flood
                await asyncio.to_thread(up.wait, "--timeout", "120")
        possible = (time.monotonic() - began) / BETWEEN_SECONDS + 1
        versions, reloads = await asyncio.to_thread(_number, up) - before, sum(await asyncio.to_thread(up.reloads)) - reloads
        print(
            f"{burst.written} edits, {versions} versions; an endpoint was live after {sorted(waited)[len(waited) // 2]:.2f} s (median), "
            f"{max(waited):.2f} s (longest of {len(waited)}); memory {watcher.growth >> 20} and {compiler.growth >> 20} MB"
        )
        assert versions <= possible, "a version of its own for more than it may have"
        assert burst.written > versions, "nothing was coalesced"
        assert len(waited) >= 2, "endpoint changes were live while the burst went on"
        assert watcher.growth < 128 * MEGABYTE
        assert compiler.growth < 128 * MEGABYTE
        _only_closed_by_reloads(tally, reloads)
        for n, port in burst.last.items():
            wanted = b"a " if port == ports["a"] else b"b "
            assert {get(p, f"app-{n}.example.com")[2][:2] for p in up.http} == {wanted}, n


def _only_closed_by_reloads(tally: Tally, reloads: int) -> None:
    """A reload closes the kept-alive connections of a node, of which there are two here; and nothing else went wrong."""
    assert [f for f in tally.failures if f.text[:1].isdigit()] == [], "wrong answers"
    assert len(tally.failures) <= 2 * reloads, tally.failures


async def _endpoint_changes(up: SluiceUp, ports: dict[str, int], flood: asyncio.Task[None]) -> AsyncIterator[float]:
    """One after another while the burst goes on, beside new policies, which need reloads: seconds until each is live everywhere."""
    n = 0
    while not flood.done():
        n += 1
        name = "ab"[n % 2]
        slow = ingress("slow", {"slow.example.com": {"/": "probe"}}, annotations={"proxy-read-timeout": str(100 + n)})
        up.write("policy.yaml", many(slow))
        began = time.monotonic()
        up.write("probe.yaml", many(*service("probe", [ports[name]]), ingress("probe", {"probe.example.com": {"/": "probe"}})))
        async with asyncio.timeout(60):
            while not all([(await asyncio.to_thread(get, p, "probe.example.com"))[2].startswith(name.encode()) for p in up.http]):
                await asyncio.sleep(0.02)
        yield time.monotonic() - began
        await asyncio.sleep(0.3)


class Unacknowledged:
    """A bus that takes what is published as fast as it comes."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection

    async def publish(self, subject: str, payload: bytes) -> int:
        await self._connection.publish(subject, payload)
        return 0


async def test_20000_deltas_in_ten_seconds_are_few_versions_and_none_is_lost(tmp_path: Path) -> None:
    """Straight onto the bus, beyond what files and a watcher bring."""
    key_directory(tmp_path / "seal")
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        connection = await nats.connect(server.url)
        cluster = Cluster(cast(Bus, Unacknowledged(connection)))
        await cluster.publish(*small_world(APPS))
        await cluster.mark()
        compiler = Service(tmp_path / "compiler.log", "compiler", "--seal-keys", str(tmp_path / "seal"), "--nats-url", server.url)
        async with services(compiler):
            before = await _head_is(bus, cluster)
            with PeakMemory(compiler.process) as memory:
                sent = await _flood(cluster)
                await cluster.mark()
                after = await _head_is(bus, cluster)
                growth = memory.growth
        await connection.close()
    print(f"{sent} deltas, {after.number - before.number} versions, {growth >> 20} MB")
    assert after.number - before.number < sent / 10
    assert growth < 128 * MEGABYTE


async def _flood(cluster: Cluster) -> int:
    """Half of it Ingresses, half of it endpoints; how many."""
    sent, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < BURST_SECONDS:
        if sent > passed * PER_SECOND:
            await asyncio.sleep(0.005)
            continue
        for n in range(sent, sent + 20):
            name = f"web-{n // 2 % APPS}"
            if n % 2:
                await cluster.put(service(name, [8000 + n // 2 % APPS])[1] | {"ports": [{"port": 1 + n}]})
            else:
                await cluster.put(ingress(f"edit-{n // 2 % APPS}", {f"e{n}.example.com": {"/": name}}))
        sent += 20
    return sent


async def _head_is(bus: JetStreamBus, cluster: Cluster) -> Manifest:
    """The newest version, once it is what the cluster has become."""
    wanted = engine_of(cluster.deltas.values()).rows
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(read.Unreadable, BusError):
                found = await read.head(bus, GROUP)
                if found is not None and await content_of(bus, found[0]) == wanted:
                    return found[0]
            await asyncio.sleep(0.1)


async def test_more_rows_than_the_tables_have_room_for_lose_none(tmp_path: Path) -> None:
    """Their memory grows by a reload, and comes up empty."""
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1) as up:
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        await asyncio.to_thread(up.wait)
        allowed = ",".join(f"10.{n // 250}.{n % 250}.0/24" for n in range(2000))
        hosts = [f"h{n}.example.com" for n in range(10)]
        paths = {f"/{k}": "web" for k in range(120)}  # 4 MB of rows a host
        large = [ingress(f"large-{n}", {h: paths}, annotations={"whitelist-source-range": allowed}) for n, h in enumerate(hosts)]
        up.write("large.yaml", many(*large))
        async with steady(up.http, "web.example.com", lambda a: a.status == 200, per_second=50, connections=2) as tally:
            await asyncio.to_thread(up.wait, "--timeout", "120")
            await asyncio.sleep(1)
        assert up.status()["nodes"][0]["reloads"].get("table-memory", 0) > 0, "they had to grow"
        assert {get(up.http[0], host, "/7")[0] for host in hosts} == {403}, "they are there: not for this client"
        _only_closed_by_reloads(tally, sum(up.reloads()))


# --- requests


async def test_limits_shed_a_burst_and_changes_are_applied_meanwhile(tmp_path: Path) -> None:
    limits = {"limit-rps": "5", "limit-burst-multiplier": "1"}
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1) as up:
        up.write("settings.yaml", many(config_map({"limit-req-status-code": "429"})))
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.write("limited.yaml", many(ingress("limited", {"limited.example.com": {"/": "web"}}, annotations=limits)))
        await asyncio.to_thread(up.wait)
        answers: Counter[int] = Counter()
        async with (
            steady(up.http, "web.example.com", lambda a: a.status == 200, per_second=50, connections=2) as tally,
            _burst_of_requests(up.http[0], "limited.example.com", answers),
        ):
            for n in range(5):
                up.write(f"new-{n}.yaml", many(ingress(f"new-{n}", {f"new-{n}.example.com": {"/": "web"}})))
                await asyncio.to_thread(up.wait)
                assert (await asyncio.to_thread(get, up.http[0], f"new-{n}.example.com"))[0] == 200
            policy = ingress("policy", {"policy.example.com": {"/": "web"}}, annotations={"proxy-read-timeout": "77"})
            up.write("policy.yaml", many(policy))
            await asyncio.to_thread(up.wait)
            assert (await asyncio.to_thread(get, up.http[0], "policy.example.com"))[0] == 200
        print(dict(answers))
        assert answers.keys() == {200, 429}
        assert answers[429] > 10 * answers[200] > 0
        _only_closed_by_reloads(tally, sum(await asyncio.to_thread(up.reloads)))
        await asyncio.sleep(1)
        assert get(up.http[0], "limited.example.com")[0] == 200, "within its limits again"


@contextlib.asynccontextmanager
async def _burst_of_requests(port: int, host: str, answers: Counter[int]) -> AsyncIterator[None]:
    """As many as 32 connections can while the block runs."""
    over = asyncio.Event()

    async def ask() -> None:
        connection = Connection(port)
        while not over.is_set():
            try:
                answers[(await connection.get(host)).status] += 1
            except (OSError, asyncio.IncompleteReadError):  # a reload has closed it
                await connection.close()
        await connection.close()

    asking = [asyncio.create_task(ask()) for _ in range(32)]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*asking)


# --- reviews


@pytest.mark.parametrize("compiler_answers", [True, False])
async def test_500_reviews_at_once_are_answered_or_turned_away_in_words(tmp_path: Path, compiler_answers: bool) -> None:
    paths, port = make_certificate(tmp_path / "certificate"), free_port()
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        files = ("--certificate", str(paths.certificate), "--key", str(paths.key))
        webhook = Service(tmp_path / "webhook.log", "webhook", *files, "--port", str(port), "--nats-url", server.url)
        seal = ("--seal-keys", str(key_directory(tmp_path / "seal")))
        compiler = Service(tmp_path / "compiler.log", "compiler", *seal, "--nats-url", server.url)
        cluster = Cluster(bus)
        await cluster.publish(*small_world(4))
        await cluster.mark()
        async with services(webhook, compiler):
            await _asked_compiler(port)
            if not compiler_answers:
                compiler.send(signal.SIGSTOP)
            context = ssl.create_default_context(cafile=str(paths.ca))
            with PeakMemory(webhook.process) as memory:
                found = await asyncio.gather(*(_review(port, n, context) for n in range(500)))
            growth = memory.growth
            after = await asyncio.to_thread(answer, port, review())
        print(Counter(status for status, _, _ in found), f"{max(s for _, _, s in found):.2f} s", growth >> 20, "MB")
        assert {text for status, text, _ in found if status != 200} <= {"too many reviews at once; try again\n"}
        assert {status for status, _, _ in found} <= {200, 503}
        assert len([1 for status, _, _ in found if status == 200]) >= 64
        assert growth < 100 * MEGABYTE
        assert after["allowed"], "and afterwards it goes on"


async def _asked_compiler(port: int) -> None:
    """Both are up: an answer is the compiler's own."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                if "skipped" not in str((await asyncio.to_thread(answer, port, review())).get("warnings")):
                    return
            await asyncio.sleep(0.05)


async def _review(port: int, n: int, context: ssl.SSLContext) -> tuple[int, str, float]:
    """One on a connection of its own: (status, body, seconds). The API server's time is 10 s; this machine may be slow."""
    began = time.monotonic()
    asked: Any = review(name=f"n{n}")
    connector = aiohttp.TCPConnector(force_close=True)
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.post(f"https://localhost:{port}/networking/v1/ingresses", json=asked, ssl=context) as response,
    ):
        return response.status, await response.text(), time.monotonic() - began
