"""Hosts that nobody names: host-less rules, default backends, the health path (behaviours 1.3, 1.4, 1.8)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import Echoes, echoes
from tests.support.edge import Edge, running
from tests.support.objects import config_map, ingress, rule, secret, service, typed

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def backends() -> Iterator[Echoes]:
    with echoes("web", "other") as found:
        yield found


def _hostless(name: str, path: str, to: str) -> dict[str, object]:
    made = typed(name, rule("x", path, "Prefix", to))
    del made["spec"]["rules"][0]["host"]
    return made


def _answer(edge: Edge, host: str, path: str = "/", *, tls: bool = False) -> str | int:
    status, _, body = edge.get(host, path, tls=tls)
    return str(json.loads(body)["name"]) if status == 200 and body else status


def test_without_anything_it_is_404_and_health(tmp_path: Path, backends: Echoes) -> None:
    objects = [*service("web", [backends.ports["web"]]), ingress("named", {"named.example.com": {"/x": "web"}})]
    with running(tmp_path, objects) as edge:
        assert _answer(edge, "nobody.example.com") == 404
        assert _answer(edge, "nobody.example.com", tls=True) == 404
        assert _answer(edge, "nobody.example.com", "/healthz") == 200
        assert _answer(edge, "named.example.com", "/healthz") == 404
        assert edge.get("nobody.example.com", "/nginx_status")[0] == 200


def test_a_rule_without_host_is_for_all_that_nobody_names(tmp_path: Path, backends: Echoes) -> None:
    objects = [
        *service("web", [backends.ports["web"]]),
        *service("other", [backends.ports["other"]]),
        ingress("named", {"named.example.com": {"/x": "web"}}),
        _hostless("all", "/", "other"),
        _hostless("part", "/part", "web"),
    ]
    with running(tmp_path, objects) as edge:
        assert _answer(edge, "nobody.example.com", "/y") == "other"
        assert _answer(edge, "nobody.example.com", "/y", tls=True) == "other"
        assert _answer(edge, "10.0.0.1", "/part/y") == "web"
        assert _answer(edge, "named.example.com", "/x") == "web"
        assert _answer(edge, "named.example.com", "/y") == 404, "a named host does not fall through"
        # HTTP/1.0 without a Host header is for the catch-all as well; HTTP/1.1 must have one.
        for version, status in ((b"1.0", b" 200 "), (b"1.1", b" 400 ")):
            with socket.create_connection(("127.0.0.1", edge.settings.http_port), 30) as connection:
                connection.sendall(b"GET / HTTP/" + version + b"\r\nConnection: close\r\n\r\n")
                assert status in connection.recv(1000).split(b"\r\n")[0]


def test_default_backends(tmp_path: Path, backends: Echoes) -> None:
    def with_default(made: dict[str, object], to: str) -> dict[str, object]:
        spec = made["spec"]
        assert isinstance(spec, dict)
        return made | {"spec": spec | {"defaultBackend": {"service": {"name": to, "port": {"number": 80}}}}}

    objects = [
        *service("web", [backends.ports["web"]]),
        *service("other", [backends.ports["other"]]),
        with_default(ingress("own", {"own.example.com": {"/x": "web"}}), "other"),
        with_default(ingress("all", {}), "web"),
    ]
    with running(tmp_path, objects) as edge:
        assert _answer(edge, "own.example.com", "/x") == "web"
        assert _answer(edge, "own.example.com", "/y") == "other"
        assert _answer(edge, "nobody.example.com") == "web"


def test_custom_errors_for_everybody_without_a_default_backend_are_the_built_in_404(tmp_path: Path, backends: Echoes) -> None:
    objects = [
        config_map({"custom-http-errors": "404,500"}),
        *service("web", [backends.ports["web"]]),
        ingress("named", {"named.example.com": {"/": "web"}}),
    ]
    with running(tmp_path, objects) as edge:
        assert edge.get("named.example.com", "/?status=500")[0] == 404
        assert edge.get("named.example.com", "/?status=501")[0] == 501
        assert edge.get("named.example.com")[0] == 200


def test_what_guards_a_host_guards_its_unmatched_paths_too(tmp_path: Path, backends: Echoes) -> None:
    """Behaviours 1.3: all annotations of the first Ingress are applied to the host's default location, which the default backend serves."""
    guards = {
        "open": {},
        "allow": {"allowlist-source-range": "10.0.0.0/8"},
        "deny": {"denylist-source-range": "127.0.0.0/8"},
        "basic": {"auth-type": "basic", "auth-secret": "users"},
        "external": {"auth-url": f"http://127.0.0.1:{backends.ports['other']}/auth?status=401"},
        "errors": {"custom-http-errors": "404,403", "default-backend": "other"},
        "errors-deny": {"custom-http-errors": "404,403", "default-backend": "other", "denylist-source-range": "127.0.0.0/8"},
        "errors-own": {"custom-http-errors": "404", "default-backend": "other", "disable-proxy-intercept-errors": "true"},
        "cors": {"enable-cors": "true"},
        "limited": {"limit-rps": "1", "limit-burst-multiplier": "1"},
    }
    objects = [
        *service("web", [backends.ports["web"]]),
        *service("other", [backends.ports["other"]]),
        secret("users", {"auth": "alice:{PLAIN}secret"}),
        *(ingress(name, {f"{name}.example.com": {"/x": "web"}}, annotations=annotations) for name, annotations in guards.items()),
    ]
    with running(tmp_path, objects, expected=["limiting requests"]) as edge:
        got = {name: _answer(edge, f"{name}.example.com", "/y") for name in guards}
        assert got == {
            "open": 404,
            "allow": 403,
            "deny": 403,
            "basic": 401,
            "external": 401,
            "errors": "other",
            "errors-deny": "other",
            "errors-own": 404,
            "cors": 404,
            "limited": 404,
        }
        seen = edge.seen("errors.example.com", "/y?q=1")
        assert (seen["path"], seen["headers"]["x-code"], seen["headers"]["x-original-uri"]) == ("/", "404", "/y?q=1")
        assert edge.seen("errors-deny.example.com", "/y")["headers"]["x-code"] == "403"
        status, headers, body = edge.get("cors.example.com", "/y", {"Origin": "https://a.example"})
        assert (status, headers["access-control-allow-origin"]) == (404, "*")
        assert b"404 Not Found" in body
        assert {edge.get("limited.example.com", "/y")[0] for _ in range(12)} == {404, 503}
