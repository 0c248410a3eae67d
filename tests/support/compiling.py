"""Objects to deltas to an engine, for tests of the compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from services.compiler.engine import Engine
from services.shared.contracts.delta import Delta
from services.shared.contracts.objects import AnyObject, kind_of
from services.shared.flags import Flags
from tests.support.objects import ingress, service

CLASS: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "IngressClass",
    "metadata": {"name": "nginx"},
    "spec": {"controller": "k8s.io/ingress-nginx"},
}


def upsert(obj: Mapping[str, Any], *, created: str = "2026-01-01T00:00:00Z") -> Delta:
    """The delta of a manifest, with an identity as the watcher would give it."""
    meta = {"uid": f"uid-{obj['kind']}-{obj['metadata']['name']}", "creationTimestamp": created, **obj["metadata"]}
    found: AnyObject = msgspec.convert({**obj, "metadata": meta}, AnyObject)
    return Delta(op="upsert", kind=kind_of(found), namespace=found.metadata.namespace, name=found.metadata.name, epoch=1, object=found)


def delete(delta: Delta) -> Delta:
    return Delta(op="delete", kind=delta.kind, namespace=delta.namespace, name=delta.name, epoch=1)


def engine_of(deltas: Iterable[Delta], flags: Flags | None = None) -> Engine:
    """A compiled engine."""
    engine = Engine(flags or Flags())
    for delta in deltas:
        engine.apply(delta)
    engine.compile()
    return engine


def small_world(count: int = 20) -> list[Delta]:
    """`count` innocent Ingresses, two a host, with their Services."""
    out = [upsert(CLASS)]
    for n in range(count):
        out += [upsert(o) for o in service(f"web-{n}", [8000 + n])]
        out.append(upsert(ingress(f"app-{n}", {f"h{n // 2}.example.com": {"/" if n % 2 else "/api": f"web-{n}"}})))
    return out
