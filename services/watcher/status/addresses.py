"""What goes into `status.loadBalancer.ingress` (behaviours §17). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

Published = tuple[dict[str, str], ...]
"""`{"ip": ...}` or `{"hostname": ...}` each, sorted, none twice."""


class LoadBalancerEntry(Struct, frozen=True):
    ip: str = ""
    hostname: str = ""


class _LoadBalancer(Struct, frozen=True):
    ingress: list[LoadBalancerEntry] | None = None


class _Status(Struct, frozen=True, rename="camel"):
    load_balancer: _LoadBalancer = _LoadBalancer()


class _Spec(Struct, frozen=True, rename="camel"):
    type: str = "ClusterIP"
    cluster_ip: str = ""
    external_name: str = ""
    external_i_ps: list[str] | None = None


class PublishedService(Struct, frozen=True):
    """The part of a Service that says where it can be reached from outside."""

    spec: _Spec = _Spec()
    status: _Status = _Status()


def _entry(text: str) -> dict[str, str]:
    try:
        return {"ip": str(ipaddress.ip_address(text))}
    except ValueError:
        return {"hostname": text}


def _sorted(entries: Iterable[dict[str, str]]) -> Published:
    unique = {(e.get("hostname", ""), e.get("ip", "")): e for e in entries}
    return tuple(unique[key] for key in sorted(unique))


def of_flag(text: str) -> Published:
    """`--publish-status-address`."""
    return _sorted(_entry(part.strip()) for part in text.split(",") if part.strip())


def of_service(service: PublishedService) -> Published:
    """`--publish-service`. Ports are not copied."""
    spec = service.spec
    external = [a for a in spec.external_i_ps or () if a]
    if spec.type == "ExternalName":
        return _sorted([{"hostname": spec.external_name}] if spec.external_name else [])
    own = [_entry(spec.cluster_ip)] if spec.cluster_ip not in ("", "None") else []
    if spec.type == "ClusterIP":
        return _sorted(own)
    if spec.type == "NodePort":
        return _sorted([_entry(a) for a in external] or own)
    given = of_status(service.status.load_balancer.ingress)
    return _sorted([*given, *(_entry(a) for a in external if _entry(a) not in given)])


def of_status(entries: Iterable[LoadBalancerEntry | Any] | None) -> Published:
    """What an object's status says, in the same form."""
    found = []
    for entry in entries or ():
        if entry.ip:
            found.append({"ip": entry.ip})
        elif entry.hostname:
            found.append({"hostname": entry.hostname})
    return _sorted(found)
