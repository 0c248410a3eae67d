"""`sluice up --kubeconfig`: a whole product on a real API server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.addresses import backend_address
from tests.support.backends import backends
from tests.support.clients import steady
from tests.support.kube import KubeServer
from tests.support.objects import ingress, tls_secret
from tests.support.up import SluiceUp, get, peer_names

pytestmark = [pytest.mark.nats, pytest.mark.nginx, pytest.mark.cluster]


def _service(namespace: str, ports: list[int]) -> list[dict[str, Any]]:
    meta = {"name": "web", "namespace": namespace}
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"web-{n}", "namespace": namespace, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [backend_address()]}] if n < len(ports) else [],
            "ports": [{"port": ports[n] if n < len(ports) else 80}],
        }
        for n in range(3)
    ]
    return [{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]}}, *slices]


async def test_apply_serves_on_two_nodes_and_scaling_costs_nothing(kube: KubeServer, namespace: str, tmp_path: Path) -> None:
    with backends("a", "b", "c", address=backend_address()) as ports:
        numbers = list(ports.values())
        up = SluiceUp(tmp_path, nodes=2, kubeconfig=kube.kubeconfig(), arguments=("--set-flag", f"watch-namespace={namespace}"))
        await asyncio.to_thread(up.__enter__)
        try:
            host = f"{namespace}.example.com"
            made = ingress("web", {host: {"/": "web"}}, tls={"tls": [host]}, annotations={"ssl-redirect": "false"}, namespace=namespace)
            await kube.apply(*_service(namespace, numbers[:1]), tls_secret("tls", host, namespace=namespace), made)
            await asyncio.to_thread(up.wait)
            assert [get(port, host)[0] for port in up.http] == [200, 200]
            await _described(kube, namespace, "web", "Live", "live on all 2 nodes")
            assert {n for port in up.https for n in peer_names(port, host)} == {host}
            before = await asyncio.to_thread(up.reloads)

            async with steady(up.http, host, lambda a: a.status == 200, per_second=100, connections=4) as tally:
                for step in range(20):
                    await kube.apply(*_service(namespace, numbers[: 1 + step % 3]))
                    await asyncio.to_thread(up.wait)
                    expected = {f"{name} /" for name in list(ports)[: 1 + step % 3]}
                    seen = {get(port, host)[2].decode() for port in up.http for _ in range(12)}
                    assert seen == expected, step
            assert tally.failures == []
            assert await asyncio.to_thread(up.reloads) == before

            bad = ingress("bad", {host: {"/bad": "web"}}, annotations={"limit-rps": "many"}, namespace=namespace)
            await kube.apply(bad)
            await _described(kube, namespace, "bad", "Rejected", "limit-rps")

            await kube.kubectl("delete", "-n", namespace, "ingress/web")
            await asyncio.to_thread(up.wait)
            assert [get(port, host)[0] for port in up.http] == [404, 404]
        finally:
            await asyncio.to_thread(up.__exit__)


async def test_addresses_come_with_the_product_and_go_with_its_end(kube: KubeServer, namespace: str, tmp_path: Path) -> None:
    flags = ("--set-flag", f"watch-namespace={namespace}", "--set-flag", "publish-status-address=203.0.113.9")
    up = SluiceUp(tmp_path, nodes=1, kubeconfig=kube.kubeconfig(), arguments=flags)
    await kube.apply(ingress("web", {f"{namespace}.example.com": {"/": "web"}}, namespace=namespace))

    async def addresses() -> str:
        return await kube.kubectl("get", "-n", namespace, "ingress/web", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")

    await asyncio.to_thread(up.__enter__)
    try:
        async with asyncio.timeout(30):
            while await addresses() != "203.0.113.9":
                await asyncio.sleep(0.2)
    finally:
        await asyncio.to_thread(up.__exit__)
    assert await addresses() == ""


async def _described(kube: KubeServer, namespace: str, name: str, *words: str) -> None:
    """Until `kubectl describe` shows an Event with all of these words."""
    async with asyncio.timeout(30):
        while True:
            shown = await kube.kubectl("describe", "-n", namespace, f"ingress/{name}")
            if any(all(word in line for word in words) for line in shown.splitlines()):
                return
            await asyncio.sleep(0.2)
