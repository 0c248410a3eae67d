"""Objects for a real API server: per Ingress a Service with two EndpointSlices; every so many Ingresses a TLS Secret. And making them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from services.shared.kube.client import Api
from tests.bench.objects import INGRESS_CLASS, NAMESPACES, host, ingress_manifest, service_manifests
from tests.support.objects import certificate

AT_ONCE = 48
"""Requests in flight."""

PATHS = {
    "IngressClass": "/apis/networking.k8s.io/v1/ingressclasses",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Service": "/api/v1/namespaces/{}/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    "Ingress": "/apis/networking.k8s.io/v1/namespaces/{}/ingresses",
}

Object = dict[str, Any]


class Size(Struct, frozen=True, kw_only=True):
    """How many of each there are; Services as many as Ingresses, EndpointSlices twice as many."""

    ingresses: int
    secrets: int

    def __str__(self) -> str:
        n = self.ingresses
        return f"{n:,} Ingresses, {n:,} Services, {2 * n:,} EndpointSlices, {self.secrets:,} Secrets"


def namespace(i: int) -> str:
    return f"team-{i % NAMESPACES}"


def path_of(obj: Object) -> str:
    return PATHS[obj["kind"]].format(obj["metadata"].get("namespace", ""))


def tls_data(i: int, serial: int = 1) -> dict[str, str]:
    """Of Secret `tls-<i>`."""
    chain, key = certificate(host(i), serial=serial)
    return {"tls.crt": base64.b64encode(chain.encode()).decode(), "tls.key": base64.b64encode(key.encode()).decode()}


def endpoint_slice(i: int, part: str, address: str, port: int, *, ready: bool) -> Object:
    """`web-<i>-<part>` with one endpoint."""
    found = service_manifests(i, address, port)[1]
    found["metadata"]["name"] = f"web-{i}-{part}"
    found["endpoints"][0]["conditions"]["ready"] = ready
    return found


def objects(size: Size, address: str, port: int) -> Iterator[list[Object]]:
    """In waves: what is referred to comes first. The endpoint at `address` is ready in each Service; another one is not."""
    yield [INGRESS_CLASS]
    yield [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": f"tls-{i}", "namespace": namespace(i)},
            "data": tls_data(i),
        }
        for i in range(size.secrets)
    ]
    services = [service_manifests(i, address, port)[0] for i in range(size.ingresses)]
    for service in services:
        service["spec"]["clusterIP"] = "None"  # 10,000 addresses of its own take the server many minutes
    yield services
    yield [endpoint_slice(i, "a", address, port, ready=True) for i in range(size.ingresses)]
    yield [endpoint_slice(i, "b", f"10.1.{i // 250 % 250}.{1 + i % 250}", port, ready=False) for i in range(size.ingresses)]
    yield [_ingress(i, tls=i < size.secrets) for i in range(size.ingresses)]


def _ingress(i: int, *, tls: bool) -> Object:
    found = ingress_manifest(i, {"ssl-redirect": "false"} if tls else {"proxy-body-size": "8m"})
    if tls:
        found["spec"]["tls"] = [{"hosts": [host(i)], "secretName": f"tls-{i}"}]
    return found


async def create(api: Api, size: Size, address: str, port: int) -> None:
    """All of them, and their namespaces. Prints how it goes."""
    await _all(api, [("/api/v1/namespaces", {"metadata": {"name": namespace(i)}}) for i in range(NAMESPACES)], "namespaces")
    for wave in objects(size, address, port):
        if wave:
            await _all(api, [(path_of(obj), obj) for obj in wave], wave[0]["kind"])


async def _all(api: Api, bodies: list[tuple[str, Object]], what: str) -> None:
    waiting = iter(bodies)
    began = time.monotonic()

    async def work() -> None:
        for path, body in waiting:
            await api.request("POST", path, body=body, timeout=120)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    took = time.monotonic() - began
    print(f"  {time.strftime('%H:%M:%S')} created {len(bodies):,} ({what}) in {took:.1f} s", flush=True)
