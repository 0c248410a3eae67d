"""Ingress status and Events on a real API server: written where it differs, quickly for many, and never to what is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.problem import Problem, Reason, Verdict
from services.shared.contracts.report import NodeReport
from services.shared.contracts.subjects import NODES_BUCKET, VERDICTS_BUCKET, token, verdict_key
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


async def test_without_flags_the_nodes_that_edge_nodes_run_on(cell: Cell, namespace: str, api: Api) -> None:
    found = {"n1": [("InternalIP", "10.0.0.1"), ("ExternalIP", "203.0.113.1")], "n2": [("InternalIP", "10.0.0.2")]}
    names = {node: f"{namespace}-{node}" for node in found}
    for node, addresses in found.items():
        await api.request("POST", "/api/v1/nodes", body={"metadata": {"name": names[node]}})
        status = {"status": {"addresses": [{"type": t, "address": a} for t, a in addresses]}}
        await api.request("PATCH", f"/api/v1/nodes/{names[node]}/status", body=status, content_type="application/merge-patch+json")
    pod = {"metadata": {"name": f"{namespace}-edge"}, "spec": {"nodeName": names["n2"], "containers": [{"name": "edge", "image": "edge"}]}}
    await api.request("POST", "/api/v1/namespaces/default/pods", body=pod)
    await api.request("POST", _path(namespace), body=ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
    try:
        async with cell.watcher(flags=Flags(election_ttl=3.0, status_update_interval=600)):
            await _reports(cell, names["n1"])
            await _until(api, namespace, {"web": [{"ip": "203.0.113.1"}]})
            await _reports(cell, f"{namespace}-edge", "elsewhere")
            await _until(api, namespace, {"web": [{"ip": "10.0.0.2"}, {"ip": "203.0.113.1"}]})
            await cell.bus.delete(NODES_BUCKET, token(names["n1"]))
            await _until(api, namespace, {"web": [{"ip": "10.0.0.2"}]})
    finally:
        await api.request("DELETE", f"/api/v1/namespaces/default/pods/{namespace}-edge", body={"gracePeriodSeconds": 0})
        for name in names.values():
            await api.request("DELETE", f"/api/v1/nodes/{name}")


async def _reports(cell: Cell, *nodes: str) -> None:
    for node in nodes:
        report = NodeReport(node=node, group="default", at=0.0, ready=True)
        await cell.bus.put(NODES_BUCKET, token(node), msgspec.json.encode(report))


async def test_a_mode_that_never_writes(cell: Cell, namespace: str, api: Api) -> None:
    flags = Flags(publish_status_address="203.0.113.7", update_status=False, election_ttl=3.0, status_update_interval=5)
    async with cell.watcher(flags=flags):
        await api.request("POST", _path(namespace), body=ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
        await cell.barrier()
        await asyncio.sleep(1)
        assert await _statuses(api, namespace) == {"web": None}


# --- Events


async def _rejected(cell: Cell, namespace: str, *problems: str) -> None:
    """What the compiler says of Ingress `web`."""
    made = tuple(Problem(reason=Reason.INVALID_ANNOTATION, field="metadata.annotations[x]", message=m, example="5") for m in problems)
    verdict = Verdict(kind="Ingress", namespace=namespace, name="web", accepted=False, problems=made)
    await cell.bus.put(VERDICTS_BUCKET, verdict_key("default", "Ingress", namespace, "web"), msgspec.json.encode(verdict))


async def _events(api: Api, namespace: str, expected: dict[str, int]) -> None:
    """Until there are exactly these: message -> count."""
    found: dict[str, int] = {}
    try:
        async with asyncio.timeout(30):
            while found != expected:
                await asyncio.sleep(0.1)
                items = msgspec.json.decode(await api.request("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
                found = {i["message"]: i["count"] for i in items}
    except TimeoutError:
        assert found == expected


def _said(message: str) -> str:
    return f"metadata.annotations[x]: {message} (for example: 5)"


async def test_events_as_kubectl_describe_shows_them(cell: Cell, namespace: str, api: Api) -> None:
    await api.request("POST", _path(namespace), body=ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
    await _rejected(cell, namespace, "was wrong before")
    async with cell.watcher(flags=ADDRESS):
        await _rejected(cell, namespace, "is\n\x1b[31mwrong")
        await _events(api, namespace, {_said("is\\n\\x1b[31mwrong"): 1})
        shown = await cell.kube.kubectl("describe", "-n", namespace, "ingress/web")
        line = next(line for line in shown.splitlines() if "Rejected" in line)
        assert line.split()[:2] == ["Warning", "Rejected"]
        assert "sluice" in line
        assert _said("is\\n\\x1b[31mwrong") in line

        await cell.bus.delete(VERDICTS_BUCKET, verdict_key("default", "Ingress", namespace, "web"))
        await _rejected(cell, namespace, "is\n\x1b[31mwrong")
        await _events(api, namespace, {_said("is\\n\\x1b[31mwrong"): 2})


async def test_an_ingress_that_the_bus_does_not_take_is_told_so_once(cell: Cell, namespace: str, api: Api) -> None:
    large = ingress("web", {"a.example.com": {f"/{n}": "web" for n in range(100)}}, namespace=namespace)
    await api.request("POST", _path(namespace), body=large)
    said: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    for name in ("first", "second"):
        await api.request("POST", _path(namespace), body=ingress(name, {f"{name}.example.com": {"/": "web"}}, namespace=namespace))
        async with cell.watcher(name, flags=ADDRESS, max_delta_bytes=2_000, ready=False), asyncio.timeout(30):
            while ("Ingress", name) not in await cell.published(namespace) or not said:
                await asyncio.sleep(0.1)
                found = msgspec.json.decode(await api.request("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
                said = {e["involvedObject"]["name"]: (e["type"], e["reason"], e["count"]) for e in found}
    assert said == {"web": ("Warning", "Rejected", 1)}
    assert "more than the 2000 that the bus takes" in found[0]["message"]


async def test_a_new_leader_repeats_nothing_and_says_what_was_missed(cell: Cell, namespace: str, api: Api) -> None:
    await api.request("POST", _path(namespace), body=ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
    async with cell.watcher("first", flags=ADDRESS) as first, cell.watcher("second", flags=ADDRESS, ready=False):
        await _heard(cell, "second")
        await _rejected(cell, namespace, "one")
        await _events(api, namespace, {_said("one"): 1})
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await _rejected(cell, namespace, "one", "two")
        await _events(api, namespace, {_said("one"): 1, _said("two"): 1})
        await _rejected(cell, namespace, "one", "two", "three")
        await _events(api, namespace, {_said("one"): 1, _said("two"): 1, _said("three"): 1})


async def _heard(cell: Cell, name: str) -> None:
    """Until this watcher has reported: it follows what there is by then."""
    async with asyncio.timeout(30):
        while name not in await cell.bus.entries("watchers"):
            await asyncio.sleep(0.05)
