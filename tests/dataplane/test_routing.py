"""From a request's host and path to a backend, and what its request line looks like there (behaviours 1.4 - 1.7)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import Recorder, echoes, recorder
from tests.support.edge import Edge, running
from tests.support.objects import config_map, ingress, rule, service, typed

pytestmark = pytest.mark.nginx

EXPECTED = ("path regex gave up", "rewrite pattern gave up", "client sent invalid host header", "client sent invalid header line")


@pytest.fixture(scope="module")
def raw() -> Iterator[Recorder]:
    with recorder() as found:
        yield found


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, raw: Recorder) -> Iterator[Edge]:
    web = {"/": "web"}
    with echoes("web", "other") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            *service("other", [ports["other"]]),
            *service("raw", [raw.port]),
            ingress("plain", {"plain.example.com": web}),
            ingress("wild", {"*.w.example.com": web, "named.w.example.com": {"/": "other"}}),
            ingress(
                "alias",
                {"alias.example.com": web},
                annotations={"server-alias": "nick.example.com,*.nick.example.org,~^re[0-9]+\\.example$"},
            ),
            ingress("raw", {"raw.example.com": {"/": "raw"}}),
            typed(
                "paths",
                rule("paths.example.com", "/exact", "Exact", "other"),
                rule("paths.example.com", "/foo", "Prefix", "web"),
                rule("paths.example.com", "/foo/bar", "Prefix", "other"),
                rule("paths.example.com", "/slash/", "Prefix", "other"),
            ),
            typed("regex", rule("regex.example.com", "/a/[0-9]+$", "ImplementationSpecific", "other"), annotations={"use-regex": "true"}),
            ingress("regex-rest", {"regex.example.com": {"/a": "web"}}),
            typed(
                "rewrite",
                rule("rewrite.example.com", "/api(/|$)(.*)", "ImplementationSpecific", "raw"),
                annotations={"rewrite-target": "/$2", "x-forwarded-prefix": "/api"},
            ),
            ingress("whole", {"whole.example.com": {"/old": "raw"}}, annotations={"rewrite-target": "/new"}),
            ingress("evil", {"evil.example.com": {"/(a+)+$": "web"}}, annotations={"use-regex": "true"}),
            ingress("evil-rewrite", {"evil-rewrite.example.com": {"/(a+)+b": "web"}}, annotations={"rewrite-target": "/$1"}),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
            yield made


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("plain.example.com", "web"),
        ("PLAIN.Example.com", "web"),
        ("plain.example.com:1234", "web"),
        ("plain.example.com.", "web"),
        ("x.w.example.com", "web"),
        ("x-1_a.w.example.com", "web"),
        ("named.w.example.com", "other"),
        ("x.y.w.example.com", 404),
        ("w.example.com", 404),
        ("nick.example.com", "web"),
        ("a.b.nick.example.org", "web"),
        ("re12.example", "web"),
        ("rex.example", 404),
        ("nobody.example.com", 404),
        ("_", 404),
        ("localhost", 404),
    ],
)
def test_hosts(edge: Edge, host: str, expected: str | int) -> None:
    status, _, body = edge.get(host)
    assert (json.loads(body)["name"] if status == 200 else status) == expected


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("paths.example.com", "/exact", "other"),
        ("paths.example.com", "/exact/", 404),
        ("paths.example.com", "/foo", "web"),
        ("paths.example.com", "/foo/", "web"),
        ("paths.example.com", "/foo/x", "web"),
        ("paths.example.com", "/foobar", 404),
        ("paths.example.com", "/foo/bar", "other"),
        ("paths.example.com", "/foo/bar/x", "other"),
        ("paths.example.com", "/foo/barx", "web"),
        ("paths.example.com", "/FOO", 404),
        ("paths.example.com", "//foo///x", "web"),
        ("paths.example.com", "/%66oo", "web"),
        ("paths.example.com", "/x/../foo", "web"),
        ("paths.example.com", "/slash/x", "other"),
        ("regex.example.com", "/a/12", "other"),
        ("regex.example.com", "/A/12", "other"),
        ("regex.example.com", "/a/12x", "web"),
        ("regex.example.com", "/abc", "web"),
        ("regex.example.com", "/b", 404),
    ],
)
def test_paths(edge: Edge, host: str, path: str, expected: str | int) -> None:
    status, _, body = edge.get(host, path)
    assert (json.loads(body)["name"] if status == 200 else status) == expected


def test_a_prefix_that_ends_in_a_slash_redirects_the_path_without_it(edge: Edge) -> None:
    status, headers, _ = edge.get("paths.example.com", "/slash?a=b")
    assert (status, headers["location"]) == (301, "http://paths.example.com/slash/?a=b")


def _send(edge: Edge, host: str, target: bytes) -> bytes:
    """The answer to a GET of exactly these bytes."""
    with socket.create_connection(("127.0.0.1", edge.settings.http_port), 30) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "target",
    [
        b"/a//b/../c",
        b"/%2Fx%20y?q=%2f&r=a+b",
        b"/?",
        b"/a?b?c",
        b"/%C3%A4;p=1/%2e%2e/x",
        b"/a&b=c#",
        b"/\xc3\xa4\xff",
        b"/a|b\"c'd{e}f\\g^h`i<j>",
        b"/./.",
        b"/" + b"x" * 6000,
    ],
)
def test_without_a_rewrite_the_request_line_goes_out_byte_for_byte(edge: Edge, raw: Recorder, target: bytes) -> None:
    before = len(raw.heads)
    assert _send(edge, "raw.example.com", target).startswith(b"HTTP/1.1 200 ")
    assert len(raw.heads) == before + 1
    assert raw.last_line == b"GET " + target + b" HTTP/1.1"


def test_a_host_in_the_request_line_outranks_the_header(edge: Edge, raw: Recorder) -> None:
    assert _send(edge, "nobody.example.com", b"http://raw.example.com/a//b?c").startswith(b"HTTP/1.1 200 ")
    assert raw.last_line == b"GET /a//b?c HTTP/1.1"


def test_head_has_no_body_and_its_length(edge: Edge) -> None:
    answer = edge.curl("-I", host="plain.example.com", path="/?size=5000").stdout
    assert answer.startswith("HTTP/1.1 200 ")
    assert "Content-Length: 5000" in answer


@pytest.mark.parametrize(("length", "status"), [(7000, 200), (40_000, 400)])
def test_large_headers(edge: Edge, length: int, status: int) -> None:
    assert edge.get("plain.example.com", "/", {"X-Large": "x" * length})[0] == status


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Host: other.example.com\r\n",
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(edge: Edge, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", edge.settings.http_port), 30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: plain.example.com\r\nConnection: close\r\n" + head + b"\r\n0\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"501")


@pytest.mark.parametrize(
    ("target", "received"),
    [
        (b"/api/items?page=2", b"/items?page=2"),
        (b"/api", b"/"),
        (b"/api/", b"/"),
        (b"/api?", b"/"),
        (b"/API/x", b"/x"),
        (b"/api/a%20b", b"/a%20b"),
        (b"/api/a%2Fb", b"/a/b"),
        (b"/api/a%3Fb", b"/a%3Fb"),
        (b"/api/a%25b", b"/a%25b"),
        (b"/api/%C3%A4", b"/%C3%A4"),
        (b"/api//a/../b?c=//d/../%2f", b"/b?c=//d/../%2f"),
        (b"/api/a%0DX-Forged:%201%7F%01", b"/a%0DX-Forged:%201%7F%01"),
        (b"/api/a%0D%0AX-Forged:%201", b"/a%0D"),  # a dot matches no newline, here as in nginx's own rewrite
    ],
)
def test_a_rewrite(edge: Edge, raw: Recorder, target: bytes, received: bytes) -> None:
    assert _send(edge, "rewrite.example.com", target).startswith(b"HTTP/1.1 200 ")
    assert raw.last_line == b"GET " + received + b" HTTP/1.1"
    assert b"\r\nX-Forwarded-Prefix: /api\r\n" in raw.heads[-1]


def test_a_rewrite_without_groups_replaces_the_whole_path(edge: Edge, raw: Recorder) -> None:
    assert _send(edge, "whole.example.com", b"/old/deep/er?q=1").startswith(b"HTTP/1.1 200 ")
    assert raw.last_line == b"GET /new?q=1 HTTP/1.1"


@pytest.mark.parametrize("host", ["evil.example.com", "evil-rewrite.example.com"])
def test_a_regular_expression_without_end_costs_little(edge: Edge, host: str) -> None:
    """2^40 steps would never end. 2^20 would, and so they would under PCRE's own limit of 10 million; but the bound is tighter."""
    for count in [40] * 10 + [20]:
        before = edge.error_log().count("gave up")
        assert edge.get(host, "/" + "a" * count + "!b")[0] == 500
        assert edge.error_log().count("gave up") > before
        assert edge.get("plain.example.com")[0] == 200
    assert edge.get("evil.example.com", "/aaaa")[0] == 200


def test_no_padding_leads_past_the_path_that_guards(tmp_path: Path) -> None:
    with echoes("web", "auth") as (ports, _):
        guarded = typed(
            "guarded",
            rule("x.example.com", "/v1/(.*)/users/(.*)/admin", "ImplementationSpecific", "web"),
            annotations={"use-regex": "true", "auth-url": f"http://127.0.0.1:{ports['auth']}/check"},
        )
        config = config_map({"block-user-agents": "~*bot(.*)crawl(.*)end", "large-client-header-buffers": "4 32k"})
        objects = [config, *service("web", [ports["web"]]), guarded, ingress("open", {"x.example.com": {"/": "web"}})]
        with running(tmp_path, objects, expected=["path regex gave up"]) as edge:
            found = [edge.get("x.example.com", "/v1/a/users/b/admin" + "/users/z" * n)[0] for n in (0, 60, 100, 400, 900, 3000)]
            assert found[:2] == [401, 401]
            assert set(found) <= {401, 500}
            for n in (0, 100, 400, 3000):
                assert edge.get("x.example.com", "/", {"User-Agent": "bot1crawl2end" + "crawlz" * n})[0] == 403
            assert edge.get("x.example.com", "/")[0] == 200


@pytest.mark.parametrize("host", ["a" * 3000, "a b", "a/b", "..", "-", "%00", "[::1]", "x" * 300 + ".example.com"])
def test_hostile_host_headers_get_an_answer(edge: Edge, host: str) -> None:
    assert edge.get(host)[0] in (400, 404)


def test_paths_in_any_language_match_what_clients_encode(tmp_path: Path) -> None:
    with echoes("web", "other") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            *service("other", [ports["other"]]),
            typed("literal", rule("l.example.com", "/straße", "Prefix", "web"), rule("l.example.com", "/道", "Exact", "other")),
            typed(
                "regex", rule("r.example.com", "/caf(é|e)/(.*)", "ImplementationSpecific", "web"), annotations={"rewrite-target": "/$2/$1"}
            ),
        ]
        with running(tmp_path, objects) as edge:
            assert edge.seen("l.example.com", "/stra%C3%9Fe/x")["path"] == "/stra%C3%9Fe/x"
            assert edge.seen("l.example.com", "/%E9%81%93")["name"] == "other"
            assert edge.get("l.example.com", "/%E9%81%93/x")[0] == 404
            assert edge.seen("r.example.com", "/caf%C3%A9/a")["path"] == "/a/%C3%A9"
            assert edge.seen("r.example.com", "/cafe/a")["path"] == "/a/e"


def test_thousands_of_paths_of_one_host_are_served(tmp_path: Path) -> None:
    """1.2 MB of JSON."""
    with echoes("web", "other") as (ports, _):
        paths = [rule("many.example.com", f"/p{n}", "Prefix", "other" if n % 2 else "web") for n in range(9_000)]
        objects = [*service("web", [ports["web"]]), *service("other", [ports["other"]]), typed("many", *paths)]
        with running(tmp_path, objects) as edge:
            for n in (0, 1, 4_500, 8_999):
                assert edge.seen("many.example.com", f"/p{n}/x")["name"] == ("other" if n % 2 else "web")
            assert edge.get("many.example.com", "/p9000")[0] == 404
