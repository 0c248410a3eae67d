"""Redirects: to https, app-root, temporal and permanent (behaviours 3.3, 3.4, 12)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import echoes
from tests.support.edge import Edge, running
from tests.support.objects import config_map, ingress, service, tls_secret

pytestmark = pytest.mark.nginx


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    web, names = {"/": "web"}, ["tls.example.com", "keep.example.com", "off.example.com", "*.wild.example.com"]
    with echoes("web") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            tls_secret("web-tls", *names),
            ingress("tls", {"tls.example.com": web, "*.wild.example.com": web}, tls={"web-tls": names}),
            ingress("off", {"off.example.com": web}, tls={"web-tls": names}, annotations={"ssl-redirect": "false"}),
            ingress("keep", {"keep.example.com": web}, tls={"web-tls": names}, annotations={"preserve-trailing-slash": "true"}),
            ingress("plain", {"plain.example.com": web}),
            ingress("force", {"force.example.com": web}, annotations={"force-ssl-redirect": "true"}),
            ingress("root", {"root.example.com": web}, annotations={"app-root": "/start"}),
            ingress("moved", {"moved.example.com": web}, annotations={"permanent-redirect": "https://new.example.com/x?y=1"}),
            ingress("path", {"path.example.com": web}, annotations={"permanent-redirect": "/new?a=b"}),
            ingress("slash", {"slash.example.com": {"/é/": "web"}}),
            ingress(
                "code",
                {"code.example.com": web},
                annotations={"permanent-redirect": "https://new.example.com", "permanent-redirect-code": "308"},
            ),
            ingress(
                "temp",
                {"temp.example.com": web},
                annotations={"temporal-redirect": "https://t.example.com", "permanent-redirect": "https://p"},
            ),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects) as made:
            yield made


@pytest.mark.parametrize(
    ("host", "path", "status", "location"),
    [
        ("root.example.com", "/", 302, "http://root.example.com/start"),
        ("root.example.com", "/start", 200, None),
        ("moved.example.com", "/a", 301, "https://new.example.com/x?y=1"),
        ("path.example.com", "/a", 301, "http://path.example.com/new?a=b"),
        ("slash.example.com", "/%C3%A9?q", 301, "http://slash.example.com/%C3%A9/?q"),
        ("code.example.com", "/a", 308, "https://new.example.com"),
        ("temp.example.com", "/", 302, "https://t.example.com"),
        ("tls.example.com", "/", 308, "https://tls.example.com"),
        ("tls.example.com", "/a/?b=c/", 308, "https://tls.example.com/a/?b=c"),
        ("tls.example.com", "//a/../b%2f", 308, "https://tls.example.com//a/../b%2f"),
        ("keep.example.com", "/a/", 308, "https://keep.example.com/a/"),
        ("x.wild.example.com", "/a", 308, "https://x.wild.example.com/a"),
        ("off.example.com", "/a", 200, None),
        ("plain.example.com", "/a", 200, None),
        ("force.example.com:8080", "/a/", 308, "https://force.example.com/a"),
        ("force.example.com", "/.well-known/acme-challenge/x", 308, "https://force.example.com/.well-known/acme-challenge/x"),
    ],
)
def test_redirects(edge: Edge, host: str, path: str, status: int, location: str | None) -> None:
    found, headers, _ = edge.get(host, path)
    assert (found, headers.get("location")) == (status, location)


@pytest.mark.parametrize("host", ["tls.example.com", "x.wild.example.com", "force.example.com", "plain.example.com"])
def test_over_https_nothing_redirects_to_it_and_hsts_is_said(edge: Edge, host: str) -> None:
    status, headers, _ = edge.get(host, tls=True)
    assert (status, headers["strict-transport-security"]) == (200, "max-age=31536000; includeSubDomains")


def test_hsts_is_not_said_in_clear(edge: Edge) -> None:
    assert "strict-transport-security" not in edge.get("plain.example.com")[1]
    assert "strict-transport-security" not in edge.get("plain.example.com", "/?h-Strict-Transport-Security=max-age=1")[1]


def test_redirects_stay_relative_where_the_administrator_wants_it(tmp_path: Path) -> None:
    with echoes("web") as (ports, _):
        objects = [
            config_map({"relative-redirects": "true"}),
            *service("web", [ports["web"]]),
            ingress("path", {"path.example.com": {"/": "web"}}, annotations={"permanent-redirect": "/new"}),
            ingress("slash", {"slash.example.com": {"/a/": "web"}}),
        ]
        with running(tmp_path, objects) as edge:
            assert edge.get("path.example.com", "/a")[1]["location"] == "/new"
            assert edge.get("slash.example.com", "/a?q")[1]["location"] == "/a/?q"
