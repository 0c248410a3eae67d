"""Which certificate a handshake is shown, also while certificates are replaced (behaviours 3.1, 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import echoes
from tests.support.edge import Edge, running
from tests.support.objects import ingress, service, tls_secret
from tests.support.up import peer_certificate, peer_names

pytestmark = pytest.mark.nginx

WILD = ["tls.example.com", "*.wild.example.com"]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    web = {"/": "web"}
    with echoes("web") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            tls_secret("web-tls", *WILD),
            tls_secret("wrong", "somebody.example.org"),
            ingress("tls", {"tls.example.com": web, "*.wild.example.com": web}, tls={"web-tls": WILD}),
            ingress("wrong", {"wrong.example.com": web}, tls={"wrong": ["wrong.example.com"]}),
            ingress("missing", {"missing.example.com": web}, tls={"nobody": ["missing.example.com"]}),
            tls_secret("alias-tls", "alias.example.com", "nick.example.com"),
            ingress(
                "alias",
                {"alias.example.com": web},
                tls={"alias-tls": ["alias.example.com"]},
                annotations={"server-alias": "nick.example.com,other-nick.example.com"},
            ),
            ingress("plain", {"plain.example.com": web}),
        ]
        with running(tmp_path, objects) as made:
            yield made


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tls.example.com", set(WILD)),
        ("TLS.example.com", set(WILD)),
        ("a.wild.example.com", set(WILD)),
        ("a.b.wild.example.com", {"ingress.local"}),
        ("nick.example.com", {"alias.example.com", "nick.example.com"}),
        ("other-nick.example.com", {"ingress.local"}),
        ("wrong.example.com", {"ingress.local"}),
        ("missing.example.com", {"ingress.local"}),
        ("plain.example.com", {"ingress.local"}),
        ("nobody.example.com", {"ingress.local"}),
    ],
)
def test_the_certificate_of_a_name(edge: Edge, name: str, shown: set[str]) -> None:
    assert peer_names(edge.settings.https_port, name) == shown


def test_each_name_of_a_host_goes_to_https_by_its_own_certificate(tmp_path: Path) -> None:
    """Behaviours 3.3: the host of the request counts, exactly or by its one-label wildcard."""
    with echoes("web") as (ports, _):
        web = {"/": "web"}
        objects = [
            *service("web", [ports["web"]]),
            ingress("plain", {"plain.test": web}, annotations={"server-alias": "b.example.com,other.test"}),
            tls_secret("wild", "*.example.com"),
            ingress("wild", {"*.example.com": web}, tls={"wild": ["*.example.com"]}),
            tls_secret("own", "own.test"),
            ingress("own", {"own.test": web}, tls={"own": ["own.test"]}, annotations={"server-alias": "nick.test,c.example.com"}),
        ]
        expected = {"plain.test": 200, "b.example.com": 308, "other.test": 200, "a.example.com": 308}
        expected |= {"own.test": 308, "nick.test": 200, "c.example.com": 308}
        with running(tmp_path, objects) as edge:
            for _ in range(12):  # workers remember
                assert {host: edge.get(host)[0] for host in expected} == expected


def _pids(edge: Edge) -> set[int]:
    master = int((edge.settings.directory / "run" / "nginx.pid").read_text())
    return {int(p) for p in Path(f"/proc/{master}/task/{master}/children").read_text().split()}


def test_a_certificate_replaced_in_service_is_shown_to_the_very_next_handshake(edge: Edge) -> None:
    def serials(count: int) -> list[int]:
        return [peer_certificate(edge.settings.https_port, "tls.example.com").serial_number for _ in range(count)]

    workers = _pids(edge)
    assert serials(8) == [1] * 8
    for serial in range(2, 8):
        edge.update(tls_secret("web-tls", *WILD, serial=serial))
        assert serials(4) == [serial] * 4
    assert _pids(edge) == workers, "no reload"


def test_tls_for_a_host_that_had_none(edge: Edge) -> None:
    assert edge.get("plain.example.com")[0] == 200
    edge.update(
        tls_secret("new", "plain.example.com"),
        ingress("plain", {"plain.example.com": {"/": "web"}}, tls={"new": ["plain.example.com"]}),
    )
    assert peer_names(edge.settings.https_port, "plain.example.com") == {"plain.example.com"}
    assert edge.get("plain.example.com")[0] == 308
    assert edge.get("plain.example.com", tls=True)[0] == 200


def test_http2_and_http1_by_alpn(edge: Edge) -> None:
    def version(how: str) -> str:
        return edge.curl(how, "-o", "/dev/null", "-w", "%{http_version} %{http_code}", host="tls.example.com", tls=True).stdout

    assert version("--http2") == "2 200"
    assert version("--http1.1") == "1.1 200"
