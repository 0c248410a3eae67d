"""What an administrator allows or a tenant tries: password formats, snippets, regular expressions that never end, certificates replaced."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.edge import Edge, echoes, secret
from tests.support.objects import config_map, ingress, service, tls_secret
from tests.support.up import peer_certificate

pytestmark = pytest.mark.nginx


def _apr1(password: str) -> str:
    """As `htpasswd` writes it."""
    done = subprocess.run(["openssl", "passwd", "-apr1", "-salt", "abcdefgh", password], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _crypt(password: str, method: str) -> str:
    done = subprocess.run(["openssl", "passwd", method, "-salt", "abcdefgh", password], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with echoes("web") as (ports, _):
        made = Edge(tmp_path_factory.mktemp("edge"))
        users = [f"apr1:{_apr1('one')}", f"sha512:{_crypt('two', '-6')}", f"sha256:{_crypt('three', '-5')}", "# a comment", ""]
        evil = "/(a+)+$"
        made.start(
            [
                config_map({"allow-snippet-annotations": "true", "annotations-risk-level": "Critical"}),
                *service("web", [ports["web"]]),
                secret("users", {"auth": "\n".join(users)}),
                ingress("guarded", {"guarded.example.com": {"/": "web"}}, annotations={"auth-type": "basic", "auth-secret": "users"}),
                ingress(
                    "snippet",
                    {"snippet.example.com": {"/": "web"}},
                    annotations={"configuration-snippet": 'more_set_headers "X-Snippet: $request_method";'},
                ),
                ingress("evil", {"evil.example.com": {evil: "web"}}, annotations={"use-regex": "true"}),
                ingress("rewrite", {"rewrite.example.com": {"/(a+)+b": "web"}}, annotations={"rewrite-target": "/$1"}),
                ingress("plain", {"plain.example.com": {"/": "web"}}),
                ingress("tls", {"tls.example.com": {"/": "web"}}, tls={"tls": ["tls.example.com"]}),
                tls_secret("tls", "tls.example.com"),
            ]
        )
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.parametrize(("user", "password"), [("apr1", "one"), ("sha512", "two"), ("sha256", "three")])
def test_passwords_as_htpasswd_and_openssl_write_them(edge: Edge, user: str, password: str) -> None:
    def status(given: str) -> str:
        return edge.curl("-u", f"{user}:{given}", "-o", "/dev/null", "-w", "%{http_code}", host="guarded.example.com").stdout

    assert status(password) == "200"
    assert status(password + "x") == "401"
    assert status("") == "401"


def test_a_snippet_that_the_administrator_allows(edge: Edge) -> None:
    assert edge.get("snippet.example.com")[1]["x-snippet"] == "GET"
    assert "x-snippet" not in edge.get("plain.example.com")[1]


@pytest.mark.parametrize("host", ["evil.example.com", "rewrite.example.com"])
def test_a_regular_expression_without_end_costs_little(edge: Edge, host: str) -> None:
    """Each would need 2^40 steps and more."""
    began = time.monotonic()
    for _ in range(20):
        assert edge.get(host, "/" + "a" * 40 + "!")[0] in (404, 500, 503)
    assert time.monotonic() - began < 10
    assert edge.get("plain.example.com")[0] == 200


def test_a_certificate_replaced_in_service_is_shown_to_the_next_handshake(edge: Edge) -> None:
    def serials() -> set[int]:
        """Of eight handshakes: each worker gets some."""
        return {peer_certificate(edge.settings.https_port, "tls.example.com").serial_number for _ in range(8)}

    assert serials() == {1}
    edge.update(tls_secret("tls", "tls.example.com", serial=2))
    assert serials() == {2}
