"""What goes into `status.loadBalancer.ingress` (behaviours §17). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec
from msgspec import Struct

Published = tuple[dict[str, str], ...]
"""`ip`, `hostname` or (of a load balancer) both in each, sorted, none twice."""


class LoadBalancerEntry(Struct, frozen=True):
    ip: str = ""
    hostname: str = ""


class _LoadBalancer(Struct, frozen=True):
    ingress: list[LoadBalancerEntry] | None = None


class _Status(Struct, frozen=True, rename="camel"):
    load_balancer: _LoadBalancer = _LoadBalancer()


class _NodeAddress(Struct, frozen=True):
    type: str = ""
    address: str = ""


class _NodeStatus(Struct, frozen=True):
    addresses: list[_NodeAddress] | None = None


class ClusterNode(Struct, frozen=True):
    """The part of a Node that says where it can be reached."""

    status: _NodeStatus = _NodeStatus()


class _Spec(Struct, frozen=True, rename="camel"):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    """`None` (the text): a headless Service."""
    external_name: str = ""
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")


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
    """`--publish-service`. Ports are not copied. Empty: it has no address (yet)."""
    spec = service.spec
    external = [a for a in spec.external_ips or () if a]
    if spec.type == "ExternalName":
        return _sorted([{"hostname": spec.external_name}] if spec.external_name else [])
    own = [_entry(spec.cluster_ip)] if spec.cluster_ip not in ("", "None") else []
    if spec.type == "ClusterIP":
        return _sorted(own)
    if spec.type == "NodePort":
        return _sorted([_entry(a) for a in external] or own)
    given = of_status(service.status.load_balancer.ingress)
    known = {e.get("ip") for e in given}
    return _sorted([*given, *(e for e in map(_entry, external) if e.get("ip") not in known)])


def of_node(node: ClusterNode, *, internal: bool) -> str:
    """The address of a Node: the first external one, else (or with `internal`) the first internal one; empty: it has none."""
    inside = next((a.address for a in node.status.addresses or () if a.type == "InternalIP" and a.address), "")
    outside = next((a.address for a in node.status.addresses or () if a.type == "ExternalIP" and a.address), "")
    return inside if internal else outside or inside


def of_nodes(addresses: Iterable[str]) -> Published:
    """Each once."""
    return _sorted(_entry(a) for a in addresses if a)


def of_status(entries: Iterable[LoadBalancerEntry] | None) -> Published:
    """What an object's status says, in the same form."""
    found = []
    for entry in entries or ():
        made = {name: text for name, text in (("ip", entry.ip), ("hostname", entry.hostname)) if text}
        if made:
            found.append(made)
    return _sorted(found)
