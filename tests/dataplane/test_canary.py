"""Canaries of every kind: header, value, pattern, cookie, weight, and which of them decides (behaviours 7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.backends import Echoes, echoes
from tests.support.edge import Edge, running
from tests.support.objects import ingress, service

pytestmark = pytest.mark.nginx

CANARIES: dict[str, dict[str, str]] = {
    "none": {"canary-weight": "0"},
    "weight": {"canary-weight": "30"},
    "all": {"canary-weight": "100"},
    "total": {"canary-weight": "500", "canary-weight-total": "1000"},
    "header": {"canary-by-header": "X-C"},
    "value": {"canary-by-header": "X-C", "canary-by-header-value": "blue"},
    "pattern": {"canary-by-header": "X-C", "canary-by-header-pattern": "^(red|green)$"},
    "cookie": {"canary-by-cookie": "try"},
    "every": {"canary-by-header": "X-C", "canary-by-cookie": "try", "canary-weight": "100"},
}


def _pair(name: str, ports: list[int], annotations: dict[str, str]) -> list[dict[str, object]]:
    """A main Ingress and its canary, each with a Service of its own."""
    host = f"{name}.example.com"
    return [
        *service(f"{name}-main", [ports[0]]),
        *service(f"{name}-new", ports[1:]),
        ingress(name, {host: {"/": f"{name}-main"}}),
        ingress(f"{name}-canary", {host: {"/": f"{name}-new"}}, annotations={"canary": "true", **annotations}),
    ]


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes("main", "new") as found:
        yield found


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, backends: Echoes) -> Iterator[Edge]:
    ports = [backends.ports["main"], backends.ports["new"]]
    objects = [made for name, said in CANARIES.items() for made in _pair(name, ports, said)]
    objects += _pair("gone", ports[:1], {"canary-weight": "100"})
    with running(tmp_path_factory.mktemp("edge"), objects) as made:
        yield made


def _names(edge: Edge, host: str, count: int, headers: dict[str, str] | None = None) -> Counter[str]:
    return Counter(edge.seen(host, "/", headers)["name"] for _ in range(count))


@pytest.mark.parametrize(("name", "low", "high"), [("weight", 74, 166), ("total", 150, 250)])
def test_a_weight_is_a_share_of_the_requests(edge: Edge, name: str, low: int, high: int) -> None:
    # 400 draws of p = 0.3 and p = 0.5: the bounds are five standard deviations away.
    assert low <= _names(edge, f"{name}.example.com", 400)["new"] <= high


@pytest.mark.parametrize(("name", "expected"), [("none", {"main": 30}), ("all", {"new": 30}), ("gone", {"main": 30})])
def test_nobody_everybody_and_a_canary_without_endpoints(edge: Edge, name: str, expected: dict[str, int]) -> None:
    assert _names(edge, f"{name}.example.com", 30) == expected


@pytest.mark.parametrize(
    ("name", "headers", "expected"),
    [
        ("header", {"X-C": "always"}, "new"),
        ("header", {"x-c": "always"}, "new"),
        ("header", {"X-C": "never"}, "main"),
        ("header", {"X-C": "Always"}, "main"),
        ("header", {"X-C": "other"}, "main"),
        ("header", {}, "main"),
        ("value", {"X-C": "blue"}, "new"),
        ("value", {"X-C": "always"}, "main"),
        ("value", {"X-C": "Blue"}, "main"),
        ("value", {}, "main"),
        ("pattern", {"X-C": "red"}, "new"),
        ("pattern", {"X-C": "green"}, "new"),
        ("pattern", {"X-C": "RED"}, "main"),
        ("pattern", {"X-C": "reddish"}, "main"),
        ("pattern", {"X-C": "always"}, "main"),
        ("cookie", {"Cookie": "try=always"}, "new"),
        ("cookie", {"Cookie": "a=b; try=always; c=d"}, "new"),
        ("cookie", {"Cookie": "try=never"}, "main"),
        ("cookie", {"Cookie": "xtry=always"}, "main"),
        ("cookie", {}, "main"),
        # header, then cookie, then weight (which here says `new`)
        ("every", {}, "new"),
        ("every", {"X-C": "never"}, "main"),
        ("every", {"X-C": "never", "Cookie": "try=always"}, "main"),
        ("every", {"X-C": "always", "Cookie": "try=never"}, "new"),
        ("every", {"X-C": "other", "Cookie": "try=never"}, "main"),
        ("every", {"X-C": "other", "Cookie": "try=other"}, "new"),
    ],
)
def test_what_a_request_says(edge: Edge, name: str, headers: dict[str, str], expected: str) -> None:
    assert _names(edge, f"{name}.example.com", 4, headers) == {expected: 4}


def test_the_access_log_names_the_canary(edge: Edge) -> None:
    edge.seen("all.example.com", "/chosen")
    assert any("/chosen" in x and "[default-all-main-80] [default-all-new-80]" in x for x in edge.access_log())


def test_a_weight_changes_without_a_reload(edge: Edge, backends: Echoes) -> None:
    ports = [backends.ports["main"], backends.ports["new"]]
    edge.update(*_pair("none", ports, {"canary-weight": "100"}))
    assert _names(edge, "none.example.com", 30) == {"new": 30}
    edge.update(*_pair("none", ports, {"canary-weight": "0"}))
    assert _names(edge, "none.example.com", 30) == {"main": 30}
