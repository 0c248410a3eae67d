"""Headers to the backend and to the client, trusted and untrusted proxies, CORS (behaviours 11, 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.backends import echoes
from tests.support.edge import Edge, running
from tests.support.objects import config_map, ingress, service, tls_secret

pytestmark = pytest.mark.nginx

FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "outside.example.com",
    "X-Forwarded-Port": "8443",
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with echoes("web") as (ports, _):
        yield ports["web"]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Edge]:
    web = {"/": "web"}
    objects = [
        *service("web", [port]),
        ingress("plain", {"plain.example.com": web}),
        tls_secret("web-tls", "tls.example.com"),
        ingress("tls", {"tls.example.com": web}, tls={"web-tls": ["tls.example.com"]}),
        ingress("vhost", {"vhost.example.com": web}, annotations={"upstream-vhost": "inside.internal"}),
        ingress("cors", {"cors.example.com": web}, annotations={"enable-cors": "true", "cors-allow-origin": "https://*.app.example.com"}),
        ingress("any", {"any.example.com": web}, annotations={"enable-cors": "true", "cors-allow-credentials": "false"}),
    ]
    with running(tmp_path_factory.mktemp("edge"), objects) as made:
        yield made


@pytest.fixture(scope="module")
def behind_a_proxy(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Edge]:
    """An edge that trusts what 127.0.0.0/8 says of its clients."""
    objects = [
        config_map({"use-forwarded-headers": "true", "proxy-real-ip-cidr": "127.0.0.0/8"}),
        *service("web", [port]),
        ingress("plain", {"plain.example.com": {"/": "web"}}),
        ingress("from", {"from.example.com": {"/": "web"}}, annotations={"allowlist-source-range": "203.0.113.0/24"}),
        ingress("force", {"force.example.com": {"/": "web"}}, annotations={"force-ssl-redirect": "true"}),
    ]
    with running(tmp_path_factory.mktemp("edge"), objects) as made:
        yield made


def test_what_a_client_claims_is_not_believed(edge: Edge) -> None:
    sent = FORWARDED | {"X-Real-IP": "6.6.6.6", "Proxy": "x", "X-Own": "1", "X-Forwarded-Scheme": "https", "X-Scheme": "https"}
    headers = edge.seen("plain.example.com:8080", "/", sent)["headers"]
    expected = {
        "host": "plain.example.com:8080",
        "x-real-ip": "127.0.0.1",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "plain.example.com:8080",
        "x-forwarded-port": str(edge.settings.http_port),
        "x-forwarded-proto": "http",
        "x-forwarded-scheme": "http",
        "x-scheme": "http",
        "x-original-forwarded-for": "203.0.113.9",
        "x-own": "1",
    }
    assert {k: headers.get(k) for k in expected} == expected
    assert "proxy" not in headers
    tls = edge.seen("tls.example.com", "/", {"X-Forwarded-Proto": "http"}, tls=True)["headers"]
    assert (tls["x-forwarded-port"], tls["x-forwarded-proto"]) == ("443", "https")


def test_what_a_trusted_proxy_says_is_believed(behind_a_proxy: Edge) -> None:
    edge = behind_a_proxy
    headers = edge.seen("plain.example.com", "/", FORWARDED)["headers"]
    expected = {
        "host": "outside.example.com",
        "x-real-ip": "203.0.113.9",
        "x-forwarded-for": "203.0.113.9",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "outside.example.com",
        "x-forwarded-port": "8443",
    }
    assert {k: headers.get(k) for k in expected} == expected
    # The right-most address that is no trusted proxy is the client; what stands left of it is the client's own claim.
    chain = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 127.0.0.5"}
    assert edge.seen("plain.example.com", "/", chain)["headers"]["x-real-ip"] == "203.0.113.9"
    assert edge.get("from.example.com", "/", FORWARDED)[0] == 200
    assert edge.get("from.example.com", "/", {"X-Forwarded-For": "203.0.113.9, 6.6.6.6"})[0] == 403
    assert edge.get("from.example.com")[0] == 403
    assert edge.get("force.example.com", "/", {"X-Forwarded-Proto": "https"})[0] == 200
    assert edge.get("force.example.com")[0] == 308


def test_a_request_id_is_kept_or_made(edge: Edge) -> None:
    made = [edge.seen("plain.example.com")["headers"]["x-request-id"] for _ in range(5)]
    assert all(re.fullmatch(r"[0-9a-f]{32}", m) for m in made)
    assert len(set(made)) == 5
    assert edge.seen("plain.example.com", "/", {"X-Request-ID": "mine"})["headers"]["x-request-id"] == "mine"


def test_the_server_says_nothing_of_itself(edge: Edge) -> None:
    assert "server" not in edge.get("plain.example.com", "/?h-Server=backend")[1]
    assert "server" not in edge.get("nobody.example.com")[1]


def test_upstream_vhost(edge: Edge) -> None:
    headers = edge.seen("vhost.example.com")["headers"]
    assert (headers["host"], headers["x-forwarded-host"]) == ("inside.internal", "vhost.example.com")


# --- CORS


def test_a_matching_origin_gets_the_headers(edge: Edge) -> None:
    status, headers, _ = edge.get("cors.example.com", "/?h-Access-Control-Allow-Origin=backend", {"Origin": "https://a.app.example.com"})
    assert (status, headers["access-control-allow-origin"]) == (200, "https://a.app.example.com")
    assert headers["access-control-allow-credentials"] == "true"
    _, headers, _ = edge.get("any.example.com", "/", {"Origin": "https://whoever.example.org"})
    assert headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "https://x-https://a.app.example.com",
        "https://a.b.app.example.com",
        "http://a.app.example.com",
        "https://a.app.example.com.evil.org",
        "https://aXappXexampleXcom",
    ],
)
def test_another_origin_does_not(edge: Edge, origin: str) -> None:
    status, headers, _ = edge.get("cors.example.com", "/", {"Origin": origin})
    assert status == 200
    assert not [h for h in headers if h.startswith("access-control-")]


def test_a_preflight_is_answered_without_the_backend(edge: Edge) -> None:
    preflight = edge.curl("-i", "-X", "OPTIONS", "-H", "Origin: https://a.app.example.com", host="cors.example.com").stdout
    assert preflight.startswith("HTTP/1.1 204")
    assert "Access-Control-Max-Age: 1728000" in preflight
    assert "Access-Control-Allow-Methods: GET, PUT, POST, DELETE, PATCH, OPTIONS" in preflight
    other = edge.curl("-i", "-X", "OPTIONS", "-H", "Origin: https://evil.example.com", host="cors.example.com").stdout
    assert '"method": "OPTIONS"' in other, "not ours: the backend answers"
