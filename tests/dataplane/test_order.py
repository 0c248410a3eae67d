"""Which of a route's rules speaks first when several apply (behaviours 13)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.backends import echoes
from tests.support.edge import Edge, running
from tests.support.objects import ingress, secret, service, tls_secret

pytestmark = pytest.mark.nginx

EXPECTED = (r"limiting requests",)
DENIED = {"denylist-source-range": "127.0.0.1"}
PASSWORD = {"auth-type": "basic", "auth-secret": "users"}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    web, empty = {"/": "web"}, {"/": "empty"}
    redirect = {"permanent-redirect": "https://new.example.com"}
    limit = {"limit-rpm": "1", "limit-burst-multiplier": "1"}
    hosts: dict[str, tuple[dict[str, str], dict[str, str]]] = {
        "root-redirect": (web, {"app-root": "/start"} | redirect),
        "redirect-force": (web, redirect | {"force-ssl-redirect": "true"}),
        "redirect-denied": (web, redirect | DENIED),
        "redirect-empty": (empty, redirect),
        "force-empty": (empty, {"force-ssl-redirect": "true"}),
        "force-denied": (web, {"force-ssl-redirect": "true"} | DENIED),
        "empty-denied": (empty, DENIED),
        "empty-password": (empty, PASSWORD),
        "denied-password": (web, DENIED | PASSWORD),
        "password-large": (web, PASSWORD | {"proxy-body-size": "1k"}),
        "cors-all": (web, {"enable-cors": "true", "force-ssl-redirect": "true"} | DENIED | PASSWORD),
        "limit-password": (web, limit | PASSWORD),
    }
    with echoes("web") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            *service("empty", []),
            secret("users", {"auth": "demo:{PLAIN}demo\n"}),
            tls_secret("tls", "tls.example.com"),
            ingress("tls", {"tls.example.com": empty}, tls={"tls": ["tls.example.com"]}, annotations=DENIED),
            *(ingress(name, {f"{name}.example.com": rules}, annotations=said) for name, (rules, said) in hosts.items()),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
            yield made


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("root-redirect", "/", 302),
        ("root-redirect", "/x", 301),
        ("redirect-force", "/", 301),
        ("redirect-denied", "/", 301),
        ("redirect-empty", "/", 301),
        ("force-empty", "/", 308),
        ("force-denied", "/", 308),
        ("empty-denied", "/", 503),
        ("empty-password", "/", 503),
        ("denied-password", "/", 403),
        ("tls", "/", 308),
    ],
)
def test_of_two_rules_the_earlier_decides(edge: Edge, host: str, path: str, status: int) -> None:
    assert edge.get(f"{host}.example.com", path)[0] == status


def test_over_https_the_next_rule_decides(edge: Edge) -> None:
    assert edge.get("force-denied.example.com", tls=True)[0] == 403
    assert edge.get("force-empty.example.com", tls=True)[0] == 503
    assert edge.get("tls.example.com", tls=True)[0] == 503


def test_a_preflight_is_answered_before_everything_else(edge: Edge) -> None:
    sent = ("-X", "OPTIONS", "-H", "Origin: https://a.example.org", "-o", "/dev/null", "-w", "%{http_code}")
    assert edge.curl(*sent, host="cors-all.example.com").stdout == "204"
    status, headers, _ = edge.get("cors-all.example.com", "/", {"Origin": "https://a.example.org"})
    assert (status, headers["access-control-allow-origin"]) == (308, "*"), "and what is refused says the CORS headers too"


def test_rates_count_before_passwords(edge: Edge) -> None:
    found = [edge.get("limit-password.example.com")[0] for _ in range(4)]
    assert found == [401, 401, 503, 503], "nobody guesses passwords faster than the limit"


def test_a_large_body_needs_a_password_first(edge: Edge) -> None:
    """As the original has it; Sluice's router may say 413 already, but never passes the body on."""
    sent = ("-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "x" * 2000)
    assert edge.curl(*sent, host="password-large.example.com").stdout in ("401", "413")
    assert edge.curl("-u", "demo:demo", *sent, host="password-large.example.com").stdout == "413"
