"""The watcher on a real API server: what is published is what the cluster holds, whatever happens to server, watch or watcher."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts import subjects
from services.shared.contracts.delta import decode_delta
from services.shared.contracts.question import BarrierAnswer
from services.shared.flags import Flags
from services.shared.kube.client import Api, Unreachable
from services.shared.kube.lease import Leader
from services.watcher.__main__ import WatcherOptions, serve
from services.watcher.publish import MAX_DELTA_BYTES
from services.watcher.sources.kubernetes import reflector
from tests.support.kube import KubeServer
from tests.support.nats import NatsServer
from tests.support.objects import config_map, ingress, tls_secret
from tests.support.sealing import key_directory

pytestmark = [pytest.mark.nats, pytest.mark.cluster]

FLAGS = Flags(election_ttl=3.0)


def service(name: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"port": 80}]},
    }


def endpoint_slice(name: str, namespace: str, *addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": name}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": list(addresses)}],
        "ports": [{"port": 8080}],
    }


class Cell:
    """A bus, a cluster, and watchers that are started and stopped."""

    def __init__(self, kube: KubeServer, bus: JetStreamBus, url: str, directory: Path) -> None:
        self.kube = kube
        self.bus = bus
        self._url = url
        self._directory = directory

    def kubeconfig(self) -> Path:
        """As whom a watcher comes to the API server."""
        return self.kube.kubeconfig()

    @contextlib.asynccontextmanager
    async def watcher(
        self, name: str = "watcher", flags: Flags = FLAGS, *, ready: bool = True, max_delta_bytes: int = MAX_DELTA_BYTES
    ) -> AsyncIterator[asyncio.Task[None]]:
        stop = asyncio.Event()
        options = WatcherOptions(
            kubeconfig=self.kubeconfig(),
            name=name,
            flags=flags,
            seal_keys=key_directory(self._directory / "seal"),
            verify_seconds=5.0,
            max_delta_bytes=max_delta_bytes,
        )
        async with JetStreamBus(self._url, name=name) as bus:
            task = asyncio.create_task(serve(bus, options, stop))
            try:
                if ready:
                    await self.barrier(task)
                yield task
            finally:
                stop.set()
                await asyncio.gather(task, return_exceptions=True)

    async def barrier(self, task: asyncio.Task[None] | None = None) -> BarrierAnswer:
        """What `sluice wait` asks first."""
        async with asyncio.timeout(60):
            while True:
                assert task is None or not task.done(), task.exception()
                try:
                    answer = await self.bus.request(subjects.ASK_WATCHER_BARRIER, b"{}", timeout=20)
                    found = msgspec.json.decode(answer, type=BarrierAnswer)
                    if not found.problems:
                        return found
                except BusError:
                    pass
                await asyncio.sleep(0.05)

    async def published(self, namespace: str) -> dict[tuple[str, str], Any]:
        """(kind, name) -> object, of one namespace, at this moment."""
        out = {}
        for message in await self.bus.history(subjects.CLUSTER_STREAM, "cluster.v1.>"):
            if message.subject == subjects.SYNC_SUBJECT:
                continue
            delta = decode_delta(message.payload)
            if delta.object is not None and delta.namespace == namespace:
                out[(delta.kind, delta.name)] = delta.object
        return out


@pytest.fixture
async def cell(kube: KubeServer, tmp_path: Path) -> AsyncIterator[Cell]:
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        yield Cell(kube, bus, server.url, tmp_path)


def application(namespace: str, host: str = "a.example.com") -> list[dict[str, Any]]:
    return [
        service("web", namespace),
        endpoint_slice("web", namespace, "198.51.100.1"),
        tls_secret("tls", host, namespace=namespace),
        tls_secret("unused", host, namespace=namespace),
        ingress("web", {host: {"/": "web"}}, tls={"tls": [host]}, namespace=namespace),
    ]


async def test_every_kind_is_created_updated_and_deleted(cell: Cell, namespace: str) -> None:
    async with cell.watcher():
        await cell.kube.apply(*application(namespace))
        await cell.barrier()
        found = await cell.published(namespace)
        assert set(found) == {("Service", "web"), ("EndpointSlice", "web-1"), ("Secret", "tls"), ("Ingress", "web")}
        assert found[("Ingress", "web")].metadata.uid

        await cell.kube.apply(endpoint_slice("web", namespace, "198.51.100.1", "198.51.100.2"))
        await cell.barrier()
        addresses = [e.addresses for e in (await cell.published(namespace))[("EndpointSlice", "web-1")].endpoints]
        assert addresses == [("198.51.100.1", "198.51.100.2")]

        await cell.kube.kubectl("delete", "-n", namespace, "ingress/web", "service/web", "endpointslice/web-1", "secret/tls")
        await cell.barrier()
        assert await cell.published(namespace) == {}


async def test_each_barrier_covers_the_write_before_it(cell: Cell, namespace: str, api: Api) -> None:
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses"
    async with cell.watcher():
        for n in range(20):
            await api.request("POST", path, body=ingress(f"i{n}", {f"h{n}.example.com": {"/": "web"}}, namespace=namespace))
            await cell.barrier()
            assert ("Ingress", f"i{n}") in await cell.published(namespace), n
        for n in range(20):
            await api.request("DELETE", f"{path}/i{n}")
            await cell.barrier()
            assert ("Ingress", f"i{n}") not in await cell.published(namespace), n


async def test_status_and_other_fields_that_are_not_read_publish_nothing(cell: Cell, namespace: str, api: Api) -> None:
    async with cell.watcher():
        await cell.kube.apply(*application(namespace))
        before = (await cell.barrier()).sequence
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses/web/status"
        status = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}
        await api.request("PATCH", path, body=status, content_type="application/merge-patch+json")
        await cell.barrier()
        later = [m for m in await cell.bus.history(subjects.CLUSTER_STREAM, "cluster.v1.ingress.>") if m.sequence > before]
        assert later == []


async def test_what_is_deleted_while_no_watcher_runs_goes(cell: Cell, namespace: str) -> None:
    await cell.kube.apply(*application(namespace))
    async with cell.watcher():
        assert ("Ingress", "web") in await cell.published(namespace)
    await cell.kube.kubectl("delete", "-n", namespace, "ingress/web", "secret/tls")
    async with cell.watcher("other"):
        assert set(await cell.published(namespace)) == {("Service", "web"), ("EndpointSlice", "web-1")}


async def test_a_restarted_api_server_and_compacted_history(cell: Cell, namespace: str) -> None:
    """The watch ends, old resourceVersions are gone: everything is listed again, nothing is deleted meanwhile."""
    await cell.kube.apply(*application(namespace))
    async with cell.watcher():
        before = set(await cell.published(namespace))
        await cell.kube.kill()
        await asyncio.sleep(1)
        assert set(await cell.published(namespace)) == before
        await cell.kube.start()
        for n in range(5):
            await cell.kube.apply(endpoint_slice("web", namespace, f"198.51.100.{10 + n}"))
        await cell.kube.compact()
        await cell.kube.apply(endpoint_slice("web", namespace, "198.51.100.99"))
        await cell.barrier()
        found = await cell.published(namespace)
        assert set(found) == before
        assert found[("EndpointSlice", "web-1")].endpoints[0].addresses == ("198.51.100.99",)


async def test_a_watch_from_before_a_compaction_is_told_so_and_lists_again(
    cell: Cell, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lines, cut = Api.lines, asyncio.Event()

    async def lines_unless_cut(api: Api, path: str, **more: Any) -> AsyncGenerator[bytes, None]:
        if cut.is_set():
            raise Unreachable("cut")
        async with contextlib.aclosing(lines(api, path, **more)) as found:
            async for line in found:
                yield line

    monkeypatch.setattr(Api, "lines", lines_unless_cut)
    monkeypatch.setattr(reflector, "LONGEST_DELAY_SECONDS", 1.0)
    await cell.kube.apply(*application(namespace))
    async with cell.watcher():
        cut.set()
        await cell.kube.kill()
        await cell.kube.start()
        await cell.kube.apply(endpoint_slice("web", namespace, "198.51.100.99"))
        await cell.kube.kubectl("delete", "-n", namespace, "ingress/web")
        await cell.kube.compact()
        await cell.kube.kill()  # with it goes what its own cache remembers
        await cell.kube.start()
        assert "listing again" not in caplog.text
        cut.clear()
        await cell.barrier()
        found = await cell.published(namespace)
        assert set(found) == {("Service", "web"), ("EndpointSlice", "web-1")}
        assert found[("EndpointSlice", "web-1")].endpoints[0].addresses == ("198.51.100.99",)
    assert "listing again" in caplog.text
    assert "does not show what is there" not in caplog.text


async def test_of_two_one_leads_and_the_other_takes_over(cell: Cell, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_released(_: Leader) -> None: ...

    async with cell.watcher("first") as first, cell.watcher("second", ready=False):
        await cell.kube.apply(*application(namespace))
        await cell.barrier()
        lease = await cell.kube.kubectl("get", "lease", "ingress-controller-leader", "-o", "jsonpath={.spec.holderIdentity}")
        assert lease == "first"
        monkeypatch.setattr(Leader, "release", not_released)
        first.cancel()  # as by kill -9
        await asyncio.gather(first, return_exceptions=True)
        await cell.kube.kubectl("delete", "-n", namespace, "ingress/web")
        began = asyncio.get_running_loop().time()
        await cell.barrier()
        assert asyncio.get_running_loop().time() - began < 20
        assert ("Ingress", "web") not in await cell.published(namespace)
        holder = await cell.kube.kubectl("get", "lease", "ingress-controller-leader", "-o", "jsonpath={.spec.holderIdentity}")
        assert holder == "second"


async def test_one_namespace_only_and_what_flags_name_besides(cell: Cell, namespace: str, api: Api) -> None:
    other = f"{namespace}-other"
    await api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": other}})
    settings = config_map({"proxy-body-size": "3m"})
    settings["metadata"] |= {"name": "settings", "namespace": other}
    await cell.kube.apply(*application(namespace), *application(other), settings)
    flags = Flags(
        watch_namespace=namespace, configmap=f"{other}/settings", default_ssl_certificate=f"{other}/tls", election_ttl=3.0, election_id="x"
    )
    async with cell.watcher(flags=flags):
        assert ("Ingress", "web") in await cell.published(namespace)
        assert set(await cell.published(other)) == {("ConfigMap", "settings"), ("Secret", "tls")}
    await api.request("DELETE", f"/api/v1/namespaces/{other}")


async def test_namespaces_by_label(cell: Cell, namespace: str, api: Api) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    await cell.kube.apply(*application(namespace))

    async def label(value: str | None) -> set[tuple[str, str]]:
        body = {"metadata": {"labels": {"team": value}}}
        await api.request("PATCH", path, body=body, content_type="application/merge-patch+json")
        await cell.barrier()
        return set(await cell.published(namespace))

    flags = Flags(watch_namespace_selector="team in (shop, blog)", election_ttl=3.0, election_id="selector")
    async with cell.watcher(flags=flags):
        assert await cell.published(namespace) == {}
        assert ("Ingress", "web") in await label("shop")
        assert ("Secret", "tls") in await label("blog")
        assert await label("other") == set()
        assert ("EndpointSlice", "web-1") in await label("blog")
        assert await label(None) == set()
