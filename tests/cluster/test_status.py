"""Ingress status on a real API server: written where it differs, quickly for many, and never to what is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.flags import Flags
from services.shared.kube.client import Api
from tests.cluster.test_watcher import Cell
from tests.support.kube import KubeServer
from tests.support.nats import NatsServer
from tests.support.objects import ingress

pytestmark = [pytest.mark.nats, pytest.mark.cluster]

ADDRESS = Flags(publish_status_address="203.0.113.7,lb.example.com", election_ttl=3.0, status_update_interval=5)
BOTH = [{"ip": "203.0.113.7"}, {"hostname": "lb.example.com"}]


@pytest.fixture
async def cell(kube: KubeServer, tmp_path: Path) -> AsyncIterator[Cell]:
    async with NatsServer(tmp_path / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        yield Cell(kube, bus, server.url, tmp_path)


def _path(namespace: str, name: str = "") -> str:
    return f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses{f'/{name}' if name else ''}"


async def _statuses(api: Api, namespace: str) -> dict[str, Any]:
    found = msgspec.json.decode(await api.request("GET", _path(namespace)))
    return {i["metadata"]["name"]: i["status"].get("loadBalancer", {}).get("ingress") for i in found["items"]}


async def _until(api: Api, namespace: str, expected: dict[str, Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while await _statuses(api, namespace) != expected:
            await asyncio.sleep(0.1)


async def test_many_new_ingresses_get_their_addresses_and_others_none(cell: Cell, namespace: str, api: Api) -> None:
    async with cell.watcher(flags=ADDRESS):
        foreign = ingress("foreign", {"f.example.com": {"/": "web"}}, namespace=namespace)
        foreign["spec"]["ingressClassName"] = "other"
        await api.request("POST", _path(namespace), body=foreign)
        made = [ingress(f"i{n}", {f"h{n}.example.com": {"/": "web"}}, namespace=namespace) for n in range(300)]
        await asyncio.gather(*(api.request("POST", _path(namespace), body=i) for i in made))
        await _until(api, namespace, {"foreign": None} | {f"i{n}": BOTH for n in range(300)})

        # Somebody else takes one away: put right at the next comparison.
        body = {"status": {"loadBalancer": {"ingress": None}}}
        await api.request("PATCH", f"{_path(namespace, 'i7')}/status", body=body, content_type="application/merge-patch+json")
        await _until(api, namespace, {"foreign": None} | {f"i{n}": BOTH for n in range(300)})


async def test_the_addresses_of_a_service_and_its_changes(cell: Cell, namespace: str, api: Api) -> None:
    service = {"metadata": {"name": "edge"}, "spec": {"type": "NodePort", "ports": [{"port": 80}], "externalIPs": ["203.0.113.1"]}}
    path = f"/api/v1/namespaces/{namespace}/services"
    await api.request("POST", path, body=service)
    await api.request("POST", _path(namespace), body=ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
    flags = Flags(publish_service=f"{namespace}/edge", election_ttl=3.0, status_update_interval=600)
    async with cell.watcher(flags=flags):
        await _until(api, namespace, {"web": [{"ip": "203.0.113.1"}]})
        changed = {"spec": {"externalIPs": ["203.0.113.2"]}}
        await api.request("PATCH", f"{path}/edge", body=changed, content_type="application/merge-patch+json")
        await _until(api, namespace, {"web": [{"ip": "203.0.113.2"}]})
    await _until(api, namespace, {"web": None})  # the only watcher, and one address: taken away at the end


async def test_a_mode_that_never_writes(cell: Cell, namespace: str, api: Api) -> None:
    flags = Flags(publish_status_address="203.0.113.7", update_status=False, election_ttl=3.0, status_update_interval=5)
    async with cell.watcher(flags=flags):
        await api.request("POST", _path(namespace), body=ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
        await cell.barrier()
        await asyncio.sleep(1)
        assert await _statuses(api, namespace) == {"web": None}
