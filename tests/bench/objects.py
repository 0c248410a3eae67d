"""Cluster objects for benchmarks, in any number: `n` Ingresses of three paths each, with their Services and EndpointSlices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from services.shared.contracts.delta import Delta
from services.shared.contracts.objects import AnyObject, kind_of

NAMESPACES = 100


def host(i: int) -> str:
    return f"app-{i}.example.com"


def service_manifests(i: int, address: str, port: int) -> list[dict[str, Any]]:
    """Service `web-<i>` and its one EndpointSlice."""
    namespace = f"team-{i % NAMESPACES}"
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"web-{i}", "namespace": namespace},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80, "targetPort": port}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"web-{i}-a", "namespace": namespace, "labels": {"kubernetes.io/service-name": f"web-{i}"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        },
    ]


def ingress_manifest(i: int, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """Ingress `app-<i>` for host `app-<i>.example.com`: `/`, `/api` and `/static`."""
    backend = {"service": {"name": f"web-{i}", "port": {"number": 80}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {
            "name": f"app-{i}",
            "namespace": f"team-{i % NAMESPACES}",
            "annotations": {f"nginx.ingress.kubernetes.io/{k}": v for k, v in (annotations or {}).items()},
        },
        "spec": {
            "ingressClassName": "nginx",
            "rules": [
                {
                    "host": host(i),
                    "http": {"paths": [{"path": p, "pathType": "Prefix", "backend": backend} for p in ("/", "/api", "/static")]},
                }
            ],
        },
    }


INGRESS_CLASS: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "IngressClass",
    "metadata": {"name": "nginx"},
    "spec": {"controller": "k8s.io/ingress-nginx"},
}


def manifests(n: int, address: str = "127.0.0.1", port: int = 9000) -> Iterator[dict[str, Any]]:
    yield INGRESS_CLASS
    for i in range(n):
        yield from service_manifests(i, address, port)
        yield ingress_manifest(i)


def delta(manifest: dict[str, Any], version: str = "1") -> Delta:
    """The delta that the watcher would publish for a manifest."""
    meta = {
        "resourceVersion": version,
        "uid": f"{manifest['kind']}-{manifest['metadata']['name']}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    obj: AnyObject = msgspec.convert({**manifest, "metadata": {**meta, **manifest["metadata"]}}, AnyObject)
    return Delta(op="upsert", kind=kind_of(obj), namespace=obj.metadata.namespace, name=obj.metadata.name, epoch=1, object=obj)
