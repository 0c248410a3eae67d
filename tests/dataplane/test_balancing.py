"""Which endpoint of a backend answers: in turn, by hash, by latency, after a failure; and over which connection (behaviours 4.4, 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.backends import Echoes, Recorder, echoes, recorder
from tests.support.edge import Edge, running
from tests.support.nats import free_port
from tests.support.objects import ingress, service

pytestmark = pytest.mark.nginx

EXPECTED = (
    r"connect\(\) failed \(111: Connection refused\) while connecting to upstream",
    "upstream prematurely closed connection while reading response header",
)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes(*NAMES) as found:
        yield found


@pytest.fixture(scope="module")
def raw() -> Iterator[Recorder]:
    with recorder() as found:
        yield found


@pytest.fixture(scope="module")
def rude() -> Iterator[Recorder]:
    with recorder(hang_up=True) as found:
        yield found


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, backends: Echoes, raw: Recorder, rude: Recorder) -> Iterator[Edge]:
    all_ports = [backends.ports[n] for n in NAMES]
    ways = {
        "turns": {},
        "hash": {"upstream-hash-by": "$arg_k"},
        "subset": {"upstream-hash-by": "$arg_k", "upstream-hash-by-subset": "true", "upstream-hash-by-subset-size": "2"},
        "ewma": {"load-balance": "ewma"},
        "chash": {"load-balance": "chash"},
    }
    objects = [*service("raw", [raw.port]), ingress("raw", {"raw.example.com": {"/": "raw"}})]
    for name, said in ways.items():
        objects += [*service(name, all_ports), ingress(name, {f"{name}.example.com": {"/": name}}, annotations=said)]
    objects += [
        *service("half", [free_port(), backends.ports["a"]]),
        *service("half-ewma", [free_port(), *all_ports]),
        *service("half-hash", [free_port(), *all_ports]),
        ingress("half", {"half.example.com": {"/": "half"}}),
        ingress("half-ewma", {"half-ewma.example.com": {"/": "half-ewma"}}, annotations={"load-balance": "ewma"}),
        ingress("half-hash", {"half-hash.example.com": {"/": "half-hash"}}, annotations={"upstream-hash-by": "$arg_k"}),
        *service("rude", [rude.port, backends.ports["a"]]),
        ingress("rude", {"rude.example.com": {"/": "rude"}}),
        *service("again", [rude.port, backends.ports["a"]]),
        ingress("again", {"again.example.com": {"/": "again"}}, annotations={"proxy-next-upstream": "error non_idempotent"}),
    ]
    with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
        yield made


KEYS = [f"key-{k * 7919 % 1000}" for k in range(60)]
"""CRC-32, which the ring is made with, spreads numbers of two digits badly: of thirty none falls to one of four endpoints in one try of five."""


def _names(edge: Edge, host: str, count: int, path: str = "/") -> Counter[str]:
    return Counter(edge.seen(host, path)["name"] for _ in range(count))


@pytest.mark.parametrize("host", ["turns.example.com", "chash.example.com"])
def test_round_robin_takes_turns(edge: Edge, host: str) -> None:
    # Each of the two workers takes turns of its own; in each no endpoint is more than one request ahead of another.
    answers = _names(edge, host, 60)
    assert set(answers) == set(NAMES)
    assert max(answers.values()) - min(answers.values()) <= 2


def test_the_same_hash_goes_to_the_same_endpoint_and_others_elsewhere(edge: Edge) -> None:
    first = {k: edge.seen("hash.example.com", f"/?k={k}")["name"] for k in KEYS}
    assert set(first.values()) == set(NAMES)
    assert {k: edge.seen("hash.example.com", f"/?k={k}")["name"] for k in KEYS} == first


def test_a_subset_is_part_of_the_endpoints(edge: Edge) -> None:
    for k in range(5):
        assert len(_names(edge, "subset.example.com", 20, f"/?k={k}")) == 2
    assert len({n for k in range(20) for n in _names(edge, "subset.example.com", 8, f"/?k={k}")}) == 3


def test_ewma_avoids_the_slow_endpoint(edge: Edge) -> None:
    # Each answer is as slow as its question: whoever is asked slowly looks slow from then on.
    assert len(_names(edge, "ewma.example.com", 40)) >= 2
    slow = edge.seen("ewma.example.com", "/?sleep=1.5")["name"]
    # Of two random candidates the slow one always loses.
    assert _names(edge, "ewma.example.com", 40)[slow] == 0


def _posts(edge: Edge, host: str, count: int) -> Counter[str]:
    return Counter(edge.curl("-d", "x", "-o", "/dev/null", "-w", "%{http_code}", host=host).stdout for _ in range(count))


def test_an_endpoint_that_refuses_connections_is_passed_over(edge: Edge) -> None:
    assert _names(edge, "half.example.com", 20) == {"a": 20}
    assert _posts(edge, "half.example.com", 8) == {"200": 8}, "it never got them"
    assert set(_names(edge, "half-ewma.example.com", 60)) <= set(NAMES)
    assert {n for k in KEYS for n in _names(edge, "half-hash.example.com", 1, f"/?k={k}")} == set(NAMES)
    for host in ("half.example.com", "half-ewma.example.com", "half-hash.example.com"):
        assert any("Connection refused" in line and f'host: "{host}"' in line for line in edge.errors()), f"{host} never tried it"


def test_an_endpoint_that_hangs_up_gets_no_second_chance_with_a_post(edge: Edge, rude: Recorder) -> None:
    """It may have done what it was asked."""
    assert _names(edge, "rude.example.com", 12) == {"a": 12}
    asked = len(rude.heads)
    assert asked >= 4
    answers = _posts(edge, "rude.example.com", 12)
    assert set(answers) == {"200", "502"}
    assert answers["502"] == len(rude.heads) - asked
    assert _posts(edge, "again.example.com", 8) == {"200": 8}, "unless the annotation says that it may be repeated"


def test_upstream_connections_are_used_again(edge: Edge, raw: Recorder) -> None:
    before = raw.connections
    for _ in range(40):
        assert edge.get("raw.example.com")[0] == 200
    assert len(raw.heads) >= 40
    assert raw.connections - before <= 2, "one for each worker"
    assert not any(b"\r\nconnection: close\r\n" in head.lower() for head in raw.heads), "nor is the backend asked to close them"
