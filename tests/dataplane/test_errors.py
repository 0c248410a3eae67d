"""When there is nothing to send to, or the backend fails: stand-ins, custom errors; and what the access log says (behaviours 1.8, 4.3, 24)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.backends import echoes
from tests.support.edge import Edge, running
from tests.support.objects import ingress, service

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    web = {"/": "web"}
    with echoes("web", "other") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            *service("other", [ports["other"]]),
            *service("empty", []),
            ingress("plain", {"plain.example.com": web}),
            ingress("empty", {"empty.example.com": {"/": "empty"}}),
            ingress("absent", {"absent.example.com": {"/": "nowhere"}}),
            ingress("standin", {"standin.example.com": {"/": "empty"}}, annotations={"default-backend": "other"}),
            ingress("errors", {"errors.example.com": web}, annotations={"custom-http-errors": "404,503", "default-backend": "other"}),
            ingress(
                "denied",
                {"denied.example.com": web},
                annotations={"custom-http-errors": "403", "default-backend": "other", "denylist-source-range": "127.0.0.1"},
            ),
            ingress(
                "own",
                {"own.example.com": web},
                annotations={"custom-http-errors": "404", "default-backend": "other", "disable-proxy-intercept-errors": "true"},
            ),
            ingress("quiet", {"quiet.example.com": web}, annotations={"enable-access-log": "false"}),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects) as made:
            yield made


def test_no_endpoint_and_no_service_are_503(edge: Edge) -> None:
    assert edge.get("empty.example.com")[0] == 503
    assert edge.get("absent.example.com")[0] == 503


def test_a_default_backend_stands_in_for_an_empty_one(edge: Edge) -> None:
    seen = edge.seen("standin.example.com", "/p?q")
    headers = seen["headers"]
    assert (seen["name"], seen["path"], headers["x-code"], headers["x-service-name"]) == ("other", "/p?q", "503", "empty")


def test_a_custom_error_is_asked_of_the_default_backend(edge: Edge) -> None:
    seen = edge.seen("errors.example.com", "/gone?status=404", {"Accept": "text/x"})
    expected = {
        "x-code": "404",
        "x-format": "text/x",
        "x-original-uri": "/gone?status=404",
        "x-namespace": "default",
        "x-ingress-name": "errors",
        "x-service-name": "web",
    }
    assert (seen["name"], seen["path"]) == ("other", "/")
    assert {k: seen["headers"].get(k) for k in expected} == expected
    assert edge.get("errors.example.com", "/?status=500")[0] == 500


def test_codes_of_nginx_itself_are_custom_errors_too(edge: Edge) -> None:
    seen = edge.seen("denied.example.com", "/x")
    assert (seen["name"], seen["path"], seen["headers"]["x-code"]) == ("other", "/", "403")


def test_codes_of_the_backend_are_left_alone_on_demand(edge: Edge) -> None:
    assert edge.get("own.example.com", "/?status=404")[0] == 404


def test_access_log_and_its_exceptions(edge: Edge) -> None:
    edge.get("plain.example.com", "/logged?x=1", {"User-Agent": "me", "Referer": "there"})
    edge.get("quiet.example.com", "/not-logged")
    edge.get("nobody.example.com", "/not-logged-either")
    edge.get("plain.example.com", "/after")
    lines = edge.access_log()
    line = next(x for x in lines if "/logged?x=1" in x)
    client = r'127\.0\.0\.1 - - \[[^\]]+\] "GET /logged\?x=1 HTTP/1\.1" 200 \d+ "there" "me" \d+ \d\.\d+ '
    upstream = r"\[default-web-80\] \[\] 127\.0\.0\.1:\d+ \d+ \d\.\d+ 200 [0-9a-f]{32}"
    assert re.fullmatch(client + upstream, line), line
    assert any("/after" in x for x in lines)
    assert not any("not-logged" in x for x in lines)
