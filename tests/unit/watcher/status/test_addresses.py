"""Which addresses a Service and Nodes give (behaviours §17)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.watcher.status.addresses import ClusterNode, PublishedService, of_flag, of_node, of_nodes, of_service


def service(type_: str, *, given: list[dict[str, Any]] | None = None, **spec: Any) -> PublishedService:
    """As the API server writes it."""
    obj = {"spec": {"type": type_, **spec}, "status": {"loadBalancer": {"ingress": given} if given else {}}}
    return msgspec.json.decode(msgspec.json.encode(obj), type=PublishedService)


def ip(address: str) -> dict[str, str]:
    return {"ip": address}


def host(name: str) -> dict[str, str]:
    return {"hostname": name}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (service("ExternalName", externalName="lb.example.com"), [host("lb.example.com")]),
        (service("ClusterIP", clusterIP="10.0.0.1"), [ip("10.0.0.1")]),
        (service("ClusterIP", clusterIP="10.0.0.1", externalIPs=["203.0.113.1"]), [ip("10.0.0.1")]),
        (service("ClusterIP", clusterIP="None"), []),
        (service("NodePort", clusterIP="10.0.0.1"), [ip("10.0.0.1")]),
        (service("NodePort", clusterIP="10.0.0.1", externalIPs=["203.0.113.2", "203.0.113.1"]), [ip("203.0.113.1"), ip("203.0.113.2")]),
        (service("LoadBalancer", clusterIP="10.0.0.1"), []),
        (service("LoadBalancer", given=[ip("203.0.113.9")], externalIPs=["203.0.113.9"]), [ip("203.0.113.9")]),
        (service("LoadBalancer", given=[ip("203.0.113.9")], externalIPs=["203.0.113.1"]), [ip("203.0.113.1"), ip("203.0.113.9")]),
        (service("LoadBalancer", given=[host("b.example.com"), host("a.example.com")]), [host("a.example.com"), host("b.example.com")]),
        (service("LoadBalancer", given=[ip("203.0.113.9") | {"ports": [{"port": 80, "protocol": "TCP"}]}]), [ip("203.0.113.9")]),
        (service("LoadBalancer", given=[ip("203.0.113.9") | host("a.example.com")]), [ip("203.0.113.9") | host("a.example.com")]),
    ],
)
def test_a_service(found: PublishedService, expected: list[dict[str, str]]) -> None:
    assert list(of_service(found)) == expected


def test_the_flag_is_sorted_and_each_address_is_there_once() -> None:
    assert of_flag("lb.example.com, 2001:db8::1,203.0.113.7,203.0.113.7,") == (ip("2001:db8::1"), ip("203.0.113.7"), host("lb.example.com"))


def node(*addresses: tuple[str, str]) -> ClusterNode:
    obj = {"status": {"addresses": [{"type": t, "address": a} for t, a in addresses]}}
    return msgspec.json.decode(msgspec.json.encode(obj), type=ClusterNode)


BOTH = node(("Hostname", "n1"), ("InternalIP", "10.1.0.1"), ("ExternalIP", "203.0.113.1"), ("ExternalIP", "2001:db8::1"))


@pytest.mark.parametrize(
    ("found", "internal", "expected"),
    [
        (BOTH, False, "203.0.113.1"),
        (BOTH, True, "10.1.0.1"),
        (node(("InternalIP", "10.1.0.1")), False, "10.1.0.1"),
        (node(("ExternalIP", "203.0.113.1")), True, ""),
        (node(("Hostname", "n1")), False, ""),
        (ClusterNode(), False, ""),
    ],
)
def test_a_node(found: ClusterNode, internal: bool, expected: str) -> None:
    assert of_node(found, internal=internal) == expected


def test_nodes_without_an_address_do_not_count() -> None:
    assert of_nodes(["", "203.0.113.2", "203.0.113.1", "203.0.113.2"]) == (ip("203.0.113.1"), ip("203.0.113.2"))
