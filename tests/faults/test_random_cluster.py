"""Two watchers on a real API server, two compilers, three NATS servers, two nodes: kill -9 of the leading watcher, of a compiler or of a
NATS server at random while objects change. Every change is live in the end, and no node ever goes back.

SLUICE_CHAOS_SECONDS sets how long (default 30; 180 is the full run), SLUICE_CHAOS_SEED which sequence.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.shared.contracts import subjects
from services.shared.contracts.report import decode_applied
from services.shared.kube.client import Api, ApiError
from tests.support.addresses import backend_address
from tests.support.backends import backends
from tests.support.clients import Answer, steady
from tests.support.compiling import CLASS
from tests.support.faults import Service
from tests.support.kube import KubeServer
from tests.support.nats_cluster import Member, NatsCluster
from tests.support.objects import ingress, service
from tests.support.plane import Observer, Plane, digest_of_objects

pytestmark = [pytest.mark.nats, pytest.mark.nginx, pytest.mark.cluster]

SECONDS = float(os.environ.get("SLUICE_CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("SLUICE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
CHANGES_PER_SECOND = 8
CONNECTIONS = 2
"""Of the clients, to each node."""
ELECTION_SECONDS = 3
NAMESPACE = "shop"
HOST = "web.example.com"
SERVICES = 4
INGRESSES = 20
LISTS = (
    "/apis/networking.k8s.io/v1/ingressclasses",
    f"/api/v1/namespaces/{NAMESPACE}/services",
    f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices",
    f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/ingresses",
)
_PLURALS = {"IngressClass": 0, "Service": 1, "EndpointSlice": 2, "Ingress": 3}


class Kubernetes:
    """The objects, and how they change."""

    def __init__(self, api: Api, port: int, choice: random.Random) -> None:
        self._api = api
        self._port = port
        self._choice = choice
        self.changes = 0

    async def begin(self) -> None:
        await self._api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": NAMESPACE}})
        await self.apply(CLASS)
        for n in range(SERVICES):
            for obj in self._service(f"s{n}", [self._port]):
                await self.apply(obj)
        await self.apply(ingress("web", {HOST: {"/": "s0"}}, namespace=NAMESPACE))

    def _service(self, name: str, ports: list[int]) -> list[dict[str, Any]]:
        objects = service(name, ports, NAMESPACE)
        for obj in objects:
            if obj["kind"] == "EndpointSlice":
                obj["metadata"]["name"] = f"{name}-1"
                obj["endpoints"] = [{"addresses": [backend_address()]}]
        return objects

    async def apply(self, obj: dict[str, Any]) -> None:
        path = f"{LISTS[_PLURALS[obj['kind']]]}/{obj['metadata']['name']}?fieldManager=test&force=true"
        await self._api.request("PATCH", path, body=obj, content_type="application/apply-patch+yaml")

    async def change(self) -> None:
        """One object is made, changed or deleted."""
        choice = self._choice
        self.changes += 1
        if choice.random() < 0.25:
            name = f"s{choice.randrange(1, SERVICES)}"
            await self.apply(self._service(name, [choice.randrange(20_000, 60_000)])[1])
            return
        name = f"i{choice.randrange(INGRESSES)}"
        if choice.random() < 0.2:
            try:
                await self._api.request("DELETE", f"{LISTS[3]}/{name}")
            except ApiError as error:
                assert error.status == 404, error
            return
        annotations = {"proxy-read-timeout": f"{choice.randrange(61, 64)}"} if choice.random() < 0.1 else None
        host = f"h{self.changes}.example.com"
        to = f"s{choice.randrange(SERVICES)}"
        await self.apply(ingress(name, {host: {"/": to}}, annotations=annotations, namespace=NAMESPACE))

    async def digest(self) -> str:
        """The oracle: what the API server holds now, compiled directly."""
        found = []
        for path in LISTS:
            listed = msgspec.json.decode(await self._api.request("GET", path))
            kind = listed["kind"].removesuffix("List")
            found += [{**item, "kind": kind, "apiVersion": listed["apiVersion"]} for item in listed["items"]]
        return digest_of_objects(found)

    async def leader(self) -> str:
        """Which watcher holds the Lease."""
        path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/ingress-controller-leader"
        lease = msgspec.json.decode(await self._api.request("GET", path))
        return str(lease["spec"].get("holderIdentity", ""))


class Killer:
    """Kills, and starts again a moment later, as a kubelet does."""

    def __init__(self, plane: Plane, kubernetes: Kubernetes, choice: random.Random) -> None:
        self._plane = plane
        self._kubernetes = kubernetes
        self._choice = choice
        self._restarting: set[asyncio.Task[None]] = set()
        self._nats: asyncio.Task[None] | None = None
        self.kills: list[str] = []

    async def kill(self) -> None:
        what = self._choice.choice(("watcher", "compiler", "nats"))
        if what == "nats":
            if self._nats is None or self._nats.done():  # one at a time: without two of three nothing is stored
                member = self._choice.choice(self._plane.cluster.members)
                self.kills.append(member.name)
                member.kill()
                self._nats = asyncio.create_task(self._again(member))
                self._restarting.add(self._nats)
            return
        leader = await self._kubernetes.leader() if what == "watcher" else ""
        victim = self._choice.choice(self._plane.compilers) if what == "compiler" else self._watcher(leader)
        if victim is not None and victim.running:
            self.kills.append(victim.log.stem)
            victim.send(signal.SIGKILL)
            self._restarting.add(asyncio.create_task(self._restart(victim)))

    def _watcher(self, name: str) -> Service | None:
        return next((w for w in self._plane.watchers if w.log.stem == name), None)

    async def _restart(self, victim: Service) -> None:
        await victim.ended()
        await asyncio.sleep(self._choice.choice((0.5, ELECTION_SECONDS + 2)))  # too late for a watcher to keep its Lease, or not
        victim.start()

    async def _again(self, member: Member) -> None:
        await asyncio.sleep(1)
        member.start()
        await member.healthy()

    async def settle(self) -> None:
        """All that was killed runs again."""
        await asyncio.gather(*self._restarting)


@pytest.fixture
async def kubernetes(tmp_path: Path) -> AsyncIterator[tuple[Kubernetes, Path]]:
    """With the kubeconfig of watchers."""
    with backends("web", address=backend_address()) as ports:
        async with KubeServer(tmp_path / "kube") as server:
            api = await server.api()
            try:
                made = Kubernetes(api, ports["web"], random.Random(SEED))
                await made.begin()
                yield made, server.kubeconfig()
            finally:
                await api.close()


async def test_random_kills_of_the_control_plane(kubernetes: tuple[Kubernetes, Path], tmp_path: Path) -> None:
    print(f"seed {SEED}")
    objects, kubeconfig = kubernetes
    source = ("--kubeconfig", str(kubeconfig), "--set-flag", f"election-ttl={ELECTION_SECONDS}s")
    async with NatsCluster(tmp_path / "nats") as cluster:
        plane = Plane(tmp_path, cluster, source=source, compilers=2, watchers=2)
        async with plane.running():
            await plane.serve(await objects.digest())
            killer = Killer(plane, objects, random.Random(SEED + 1))
            ports = [node.http for node in plane.nodes]
            async with Observer(plane.nodes) as observer, steady(ports, HOST, _right, per_second=50, connections=CONNECTIONS) as tally:
                await asyncio.gather(_changing(objects), _killing(killer))
                await killer.settle()
                last = max(await plane.serve(await objects.digest()))
            observer.check()
            assert [f for f in tally.failures if f.text[:1].isdigit()] == [], "wrong answers"
            for node in plane.nodes:  # a reload closes idle connections, on which a request may be on its way
                lost = sum(f.port == node.http for f in tally.failures)
                assert lost <= CONNECTIONS * await node.generation()
            for node in plane.nodes:
                await _applied_in_order(cluster, node.name)
            served, kills = len(observer.contents), killer.kills
            print(
                f"{objects.changes} changes, {served} versions to {last}, {tally.requests} requests, {len(kills)} kills: {' '.join(kills)}"
            )
            assert objects.changes > SECONDS
            assert len(kills) >= SECONDS / 10
            assert served > SECONDS / 3


def _right(found: Answer) -> bool:
    return found.status == 200 and found.body.startswith(b"web ")


async def _changing(objects: Kubernetes) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        await objects.change()
        await asyncio.sleep(1 / CHANGES_PER_SECOND)


async def _killing(killer: Killer) -> None:
    choice = random.Random(SEED + 2)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        await asyncio.sleep(choice.uniform(0.5, 4))
        await killer.kill()


async def _applied_in_order(cluster: NatsCluster, node: str) -> None:
    """By the node's own events; the last 256 are kept. A version is told of again when a reload brings the rest of its rows."""
    async with cluster.bus() as bus:
        events = [decode_applied(m.payload) for m in await bus.history(subjects.APPLIED_STREAM, subjects.applied_subject(node))]
    assert events
    for before, after in itertools.pairwise(events):
        version, following = (before.epoch, before.number), (after.epoch, after.number)
        assert following > version or (following == version and after.reload), f"{node} applied {version} and then {following}"
