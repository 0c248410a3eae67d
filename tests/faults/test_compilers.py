"""Two compilers, either of which stops and goes on at random while the cluster changes: every number is one content, nothing is lost, and
a node that follows never goes back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import signal
from pathlib import Path

import msgspec
import nats
import pytest
from nats.aio.msg import Msg

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts import subjects
from services.shared.contracts.question import CoverAnswer, CoverQuestion
from services.shared.contracts.report import decode_applied, decode_node_report
from services.shared.contracts.version import Manifest, VersionId, decode_manifest
from services.shared.versions import read
from tests.support.cluster import Cluster
from tests.support.compiling import engine_of, small_world
from tests.support.faults import Proxy, Service, services, until
from tests.support.nats import NatsServer, free_port
from tests.support.objects import ingress
from tests.support.sealing import key_directory
from tests.support.versions import GROUP, content_of

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

ROUNDS = 30
SECONDS = 60


class Committed:
    """Every version that was ever stored, in order."""

    def __init__(self) -> None:
        self.manifests: list[Manifest] = []

    async def hear(self, message: Msg) -> None:
        self.manifests.append(decode_manifest(message.data))

    def check(self) -> None:
        ids = [m.id for m in self.manifests]
        assert len(set(ids)) == len(ids), "no number twice"
        assert ids == sorted(ids)


def _compiler(directory: Path, url: str, name: str) -> Service:
    return Service(directory / f"{name}.log", "compiler", "--seal-keys", str(directory / "seal"), "--nats-url", url)


def _applier(directory: Path, url: str) -> Service:
    ports = ("--http-port", str(free_port()), "--https-port", str(free_port()), "--health-port", str(free_port()))
    return Service(directory / "applier.log", "applier", "--node", "n", "--directory", str(directory / "node"), *ports, "--nats-url", url)


async def _covered(bus: JetStreamBus, sequence: int) -> CoverAnswer:
    """By whichever compiler answers."""
    question = msgspec.json.encode(CoverQuestion(sequence=sequence))
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(BusError):
                asked = await bus.request(subjects.of_group(subjects.ASK_COMPILER_COVER, "default"), question, timeout=5)
                answer = msgspec.json.decode(asked, type=CoverAnswer)
                if not answer.error:
                    return answer
            await asyncio.sleep(0.02)


async def _end_is_right(bus: JetStreamBus, cluster: Cluster) -> Manifest:
    """The newest version, once it is what the cluster has become."""
    wanted = engine_of(cluster.deltas.values()).rows
    async with asyncio.timeout(SECONDS):
        while True:
            found = await read.head(bus, GROUP)
            if found is not None and await content_of(bus, found[0]) == wanted:
                return found[0]
            await asyncio.sleep(0.05)


async def test_either_of_two_stops_and_goes_on_at_random(tmp_path: Path) -> None:
    choice = random.Random(7)
    key_directory(tmp_path / "seal")
    committed = Committed()
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        listener = await nats.connect(server.url)
        await listener.subscribe(subjects.republished(subjects.config_subject(GROUP)), cb=committed.hear)
        cluster = Cluster(bus)
        await cluster.publish(*small_world(6))
        sequence = await cluster.mark()
        first, second = _compiler(tmp_path, server.url, "first"), _compiler(tmp_path, server.url, "second")
        async with services(first, second, _applier(tmp_path, server.url)):
            await _covered(bus, sequence)
            for round_ in range(ROUNDS):
                victim = choice.choice((first, second))
                victim.send(signal.SIGSTOP)
                for n in range(choice.randrange(1, 4)):
                    await cluster.put(ingress(f"edit-{n}", {f"r{round_}-{n}.example.com": {"/": "web-0"}}))
                    await asyncio.sleep(choice.uniform(0, 0.1))
                sequence = await cluster.mark()
                if choice.random() < 0.2:
                    await asyncio.sleep(1)
                victim.send(signal.SIGCONT)
                await asyncio.sleep(choice.uniform(0, 0.1))
            await _covered(bus, sequence)
            head = await _end_is_right(bus, cluster)
            await _node_has(bus, head)
        await listener.close()
        committed.check()
        assert committed.manifests[-1].id == head.id
        await _never_went_back(bus)


async def test_what_a_compiler_commits_late_is_refused_by_the_stream(tmp_path: Path) -> None:
    """Its version was held up on its way, and meanwhile another committed a newer one under that number."""
    key_directory(tmp_path / "seal")
    committed = Committed()
    attempts = 0

    def passes(data: bytes) -> int:
        nonlocal attempts
        attempts += data.count(b"PUB config.v1.")
        return len(data)

    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus, Proxy(server.port, passes) as proxy:
        await bus.ensure()
        listener = await nats.connect(server.url)
        await listener.subscribe(subjects.republished(subjects.config_subject(GROUP)), cb=committed.hear)
        cluster = Cluster(bus)
        await cluster.publish(*small_world(6))

        async def edit(host: str) -> None:
            await cluster.put(ingress("edit", {host: {"/": "web-0"}}))
            await cluster.mark()

        held, other = _compiler(tmp_path, proxy.url, "held"), _compiler(tmp_path, server.url, "other")
        async with services(held):
            host = ""
            for n in range(5):  # it may just be asking something when it is held up, and then commits nothing
                await edit(f"first-{n}.example.com")
                await _end_is_right(bus, cluster)
                proxy.hold()
                before, host = attempts, f"held-up-{n}.example.com"
                await edit(host)
                with contextlib.suppress(TimeoutError):
                    await until(functools.partial(lambda since: attempts > since, before), seconds=4)
                    break
                proxy.release()
            await edit("newer.example.com")
            async with services(other):
                head = await _end_is_right(bus, cluster)
                proxy.release()
                await edit("last.example.com")
                assert (await _end_is_right(bus, cluster)).id > head.id
        await listener.close()
        committed.check()
        told = str(committed.manifests)
        assert "newer.example.com" in told
        assert host and host not in told


async def _node_has(bus: JetStreamBus, head: Manifest) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            found = (await bus.entries(subjects.NODES_BUCKET)).get("n")
            if found is not None:
                report = decode_node_report(found)
                if (report.epoch, report.number, report.digest) == (head.epoch, head.number, head.digest):
                    return
            await asyncio.sleep(0.05)


async def _never_went_back(bus: JetStreamBus) -> None:
    applied = [decode_applied(m.payload) for m in await bus.history(subjects.APPLIED_STREAM, subjects.applied_subject("n"))]
    ids = [VersionId(a.epoch, a.number) for a in applied]
    assert len(ids) > 10
    assert ids == sorted(set(ids))
