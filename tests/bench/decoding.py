"""A list of Ingresses from the API server's bytes to objects: as the watcher does it, and through the client library's models."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
from kubernetes.client import ApiClient
from msgspec import Raw, Struct

from services.shared.contracts.objects import Ingress
from services.watcher.sources.kubernetes.kinds import read
from tests.bench.objects import ingress_manifest
from tests.bench.results import Result, judged, reported

COUNT = 10_000
ROUNDS = 3


class _List(Struct):
    items: list[Raw]


def _as_stored(i: int) -> dict[str, Any]:
    """With what an API server adds: identity, managed fields of two writers, a status."""
    found = ingress_manifest(i, {"proxy-body-size": "8m", "ssl-redirect": "true"})
    fields = {"f:metadata": {"f:annotations": {".": {}, "f:nginx.ingress.kubernetes.io/proxy-body-size": {}}}, "f:spec": {"f:rules": {}}}
    written = {"apiVersion": "networking.k8s.io/v1", "fieldsType": "FieldsV1", "fieldsV1": fields, "time": "2026-01-01T00:00:00Z"}
    found["metadata"] |= {
        "uid": f"00000000-0000-4000-8000-{i:012d}",
        "resourceVersion": str(1000 + i),
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [written | {"manager": m, "operation": "Update"} for m in ("kubectl", "nginx-ingress-controller")],
    }
    found["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}
    return found


def _ours(data: bytes) -> int:
    found = [read("Ingress", bytes(raw)) for raw in msgspec.json.decode(data, type=_List).items]
    return sum(isinstance(obj, Ingress) for obj in found)


def _librarys(data: bytes) -> int:
    client: Any = ApiClient()
    return len(client.deserialize(data.decode(), "V1IngressList", "application/json").items)


def _seconds(decode: Callable[[bytes], int], data: bytes) -> float:
    started = time.perf_counter()
    if decode(data) != COUNT:
        raise RuntimeError("not all of them were decoded")
    return time.perf_counter() - started


def decoding() -> list[Result]:
    data = json.dumps({"kind": "IngressList", "metadata": {}, "items": [_as_stored(i) for i in range(COUNT)]}).encode()
    pairs = [(_seconds(_ours, data), _seconds(_librarys, data)) for _ in range(ROUNDS)]
    ours, library = (statistics.median(side) for side in zip(*pairs, strict=True))
    sizes = f"{COUNT:,} Ingresses, {len(data) / 1e6:.0f} MB"
    return [
        judged("decoding a list: the client's models against ours", library / ours, "x", ">=", 10, f"{sizes}; median of {ROUNDS} pairs"),
        reported("decoding a list, ours", ours * 1000, "ms", sizes),
        reported("decoding a list, the client's models", library * 1000, "ms", sizes),
    ]
