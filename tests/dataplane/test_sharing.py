"""How requests are shared out: balancing by latency, canaries of every kind, limits of connections and rates."""

from __future__ import annotations

import concurrent.futures
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.edge import Edge, echoes
from tests.support.objects import config_map, ingress, service

pytestmark = pytest.mark.nginx


def _canary(name: str, **said: str) -> list[dict[str, object]]:
    host = f"{name}.example.com"
    annotations = {"canary": "true", **{k.replace("_", "-"): v for k, v in said.items()}}
    return [
        ingress(name, {host: {"/": f"{name}-main"}}),
        ingress(f"{name}-canary", {host: {"/": f"{name}-new"}}, annotations=annotations),
    ]


CANARIES: dict[str, dict[str, str]] = {
    "weight": {"canary_weight": "30"},
    "all": {"canary_weight": "100"},
    "total": {"canary_weight": "500", "canary_weight_total": "1000"},
    "value": {"canary_by_header": "X-C", "canary_by_header_value": "blue"},
    "pattern": {"canary_by_header": "X-C", "canary_by_header_pattern": "^(red|green)$"},
    "cookie": {"canary_by_cookie": "try"},
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with echoes("web", "other") as (ports, _):
        made = Edge(tmp_path_factory.mktemp("edge"))
        objects = [*service("web", [ports["web"]]), *service("both", [ports["web"], ports["other"]])]
        for name, said in CANARIES.items():
            objects += [*service(f"{name}-main", [ports["web"]]), *service(f"{name}-new", [ports["other"]]), *_canary(name, **said)]
        objects += [
            config_map({"use-forwarded-headers": "true", "proxy-real-ip-cidr": "127.0.0.0/8"}),
            ingress("ewma", {"ewma.example.com": {"/": "both"}}, annotations={"load-balance": "ewma"}),
            ingress("few", {"few.example.com": {"/": "web"}}, annotations={"limit-connections": "2"}),
            ingress("rate", {"rate.example.com": {"/": "web"}}, annotations={"limit-rps": "2", "limit-burst-multiplier": "3"}),
            ingress("plain", {"plain.example.com": {"/": "web"}}),
            ingress("from", {"from.example.com": {"/": "web"}}, annotations={"allowlist-source-range": "203.0.113.0/24"}),
        ]
        made.start(objects)
        try:
            yield made
        finally:
            made.stop()


def _names(edge: Edge, host: str, count: int, headers: dict[str, str] | None = None) -> Counter[str]:
    return Counter(edge.seen(host, "/", headers)["name"] for _ in range(count))


def test_canary_by_weight(edge: Edge) -> None:
    # 400 draws of p = 0.3: the bounds are five standard deviations away.
    assert 74 <= _names(edge, "weight.example.com", 400)["other"] <= 166
    assert 150 <= _names(edge, "total.example.com", 400)["other"] <= 250
    assert _names(edge, "all.example.com", 20) == {"other": 20}


@pytest.mark.parametrize(
    ("host", "headers", "name"),
    [
        ("value.example.com", {"X-C": "blue"}, "other"),
        ("value.example.com", {"X-C": "always"}, "web"),
        ("value.example.com", {"X-C": "Blue"}, "web"),
        ("value.example.com", {}, "web"),
        ("pattern.example.com", {"X-C": "red"}, "other"),
        ("pattern.example.com", {"X-C": "green"}, "other"),
        ("pattern.example.com", {"X-C": "reddish"}, "web"),
        ("cookie.example.com", {"Cookie": "try=always"}, "other"),
        ("cookie.example.com", {"Cookie": "a=b; try=always; c=d"}, "other"),
        ("cookie.example.com", {"Cookie": "try=never"}, "web"),
        ("cookie.example.com", {"Cookie": "xtry=always"}, "web"),
        ("cookie.example.com", {}, "web"),
    ],
)
def test_canary_by_what_a_request_says(edge: Edge, host: str, headers: dict[str, str], name: str) -> None:
    assert _names(edge, host, 5, headers) == {name: 5}


def test_ewma_avoids_the_slow_endpoint(edge: Edge) -> None:
    _names(edge, "ewma.example.com", 20)
    # Each answer is as slow as its question: whoever is asked slowly looks slow from then on.
    slow = edge.seen("ewma.example.com", "/?sleep=1")["name"]
    after = _names(edge, "ewma.example.com", 30)
    assert after[slow] < sum(after.values()) / 2


def _at_once(edge: Edge, host: str, path: str, count: int) -> Counter[int]:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(lambda _: edge.get(host, path)[0], range(count)))


def test_limit_connections(edge: Edge) -> None:
    assert _at_once(edge, "few.example.com", "/?sleep=2", 6) == {200: 2, 503: 4}
    assert _at_once(edge, "few.example.com", "/", 1) == {200: 1}


def test_limit_rps_with_its_burst(edge: Edge) -> None:
    answers = _at_once(edge, "rate.example.com", "/", 20)
    assert set(answers) == {200, 503}
    assert 6 <= answers[200] <= 10, "two a second, six more at once"


def test_forwarded_headers_of_a_trusted_proxy(edge: Edge) -> None:
    sent = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "outside.example.com",
        "X-Forwarded-Port": "8443",
    }
    headers = edge.seen("plain.example.com", "/", sent)["headers"]
    expected = {
        "x-real-ip": "203.0.113.9",
        "x-forwarded-for": "203.0.113.9",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "outside.example.com",
        "x-forwarded-port": "8443",
    }
    assert {k: headers.get(k) for k in expected} == expected
    assert edge.get("from.example.com", "/", sent)[0] == 200
    assert edge.get("from.example.com")[0] == 403
