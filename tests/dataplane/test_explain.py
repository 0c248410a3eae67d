"""`sluice explain` and nginx agree about the same request: the Ingress, its path, the backend, or what nginx answers itself."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
import pytest
from cryptography import x509

from services.compiler.explain import explain
from services.shared.contracts.question import ExplainAnswer, ExplainQuestion
from services.shared.contracts.tables import CertificateRow
from services.shared.flags import Flags
from tests.support.backends import Recorder, recorder
from tests.support.edge import Edge, running, until
from tests.support.objects import config_map, ingress, rule, service, tls_secret, typed
from tests.support.up import peer_certificate

pytestmark = pytest.mark.nginx

EXPECTED = ("client sent invalid", "client sent malformed", "path regex gave up", "rewrite pattern gave up")
SERVICES = ("a", "b", "c", "d", "e")
KINDS = ("Exact", "Prefix", "ImplementationSpecific")
LOG = '{"n":"$arg_n","ingress":"$namespace/$ingress_name","path":"$location_path"}'

LITERAL = ["/", "/a", "/a/", "/A", "/ab", "/a/b", "/a/b/", "/a.b", "/a/b/c", "/%61", "/a b", "/a*", "/(a", "/b"]
PATTERNS = [
    "/a", "/a/", "/a$", "/a|/b", "/a/|b$", "/[ab]+/c", "/a(/|$)(.*)", "/a(?!b)", "/a\\.b", "/a.b", "/a[^a-z]", "/\\w+/\\d+", "/a\\h", "/a{2}", "/a{,2}",
    "/a{b}", "/(a|b)\\1", "/\\x61\\W", "/a\\Z", "/[[:alpha:]]{2,}/", "/(?-i)A", "/a(?i:B)", "/caf.{2}$", "/caf[^f]", "/[a-c&&b]", "/a++b", "/(?>a|ab)c", "/(?<=/)b",
]  # fmt: skip
PIECES = [
    b"a",
    b"b",
    b"c",
    b"A",
    b"B",
    b"ab",
    b"aa",
    b"/",
    b"/",
    b"/",
    b"//",
    b"/./",
    b"/../",
    b"..",
    b".",
    b"1",
    b"%61",
    b"%2f",
    b"%2F",
    b"%2e",
    b"%252e",
]
PIECES += [
    b"%20",
    b"%09",
    b"%0a",
    b"%3f",
    b"%23",
    b"%25",
    b"%a0",
    b"caf\xc3\xa9",
    b"caf%C3%A9",
    b"caf%e9",
    b"\xff",
    b"(",
    b"{b}",
    b"{,2}",
    b"&",
    b"*",
    b"+",
    b"-",
    b";x",
]
BAD = [b"%00", b"%zz", b"%", b"%4", b" ", b"\x7f", b"/../../.."]
STARTS = [
    "/",
    "/a",
    "/b",
    "/ab",
    "/aa",
    "/A",
    "/a/b",
    "/a{b}",
    "/a{,2}",
    "/a.b",
    "/a\\b",
    "/ab/1",
    "/caf\u00e9",
    "/c/c",
    "/x/a|/b",
    "/aba",
    "/a b",
]
REQUESTS = 1000
AGAINST = [
    "/",
    "/../a",
    "/a/../../b",
    "/a/..",
    "/a/.",
    "/..",
    "/a//b/./c/../",
    "/%2e%2e/",
    "/a%2f..%2f..",
    "/...",
    "/a/...",
    "//",
    "/healthz",
    "/healthzz",
    "/x/../healthz",
]
HOSTS = [
    "lit-0.example.com", "lit-1.example.com", "lit-2.example.com", "rex-0.example.com", "rex-1.example.com", "rex-2.example.com", "mixed.example.com",
    "rewrite.example.com", "LIT-0.Example.COM", "lit-0.example.com.", "lit-0.example.com:8080", "lit-0.example.com.:81", "one.w.example.com", "two.one.w.example.com",
    "w.example.com", "named.w.example.com", "a_b-c.w.example.com", "a!b.w.example.com", "*.w.example.com", "nick.example.org", "x.nick.example.org", "x.y.nick.example.org",
    "pre.example", "pre.a.b", "pre.", "dot.example.net", "x.dot.example.net", "re12.example", "xre12.example", "RE7.example:1", "re1.w.example.com", "nobody.example.com",
    "_", "10.0.0.1", "[::1]:80", "[::1", "[x]y", "a..b", ".w.example.com", "", ":80", "b\u00fccher.example.com", "user@lit-0.example.com", "a b.example.com", "xn--bcher-kva.example.com",
    "l" * 64 + ".w.example.com",
]  # fmt: skip
SPECIAL = [
    *(f"{name}.example.com" for name in ("root", "moved", "away", "force", "shut", "none", "gone", "stand", "canary", "quiet", "half", "tls", "errors", "errors-else", "cors")),
    "x.tls.example.com", "nick.tls.example.com", "one.wtls.example.com", "plain.wtls.example.com", "deep.one.wtls.example.com",
]  # fmt: skip


class Seen(NamedTuple):
    """What nginx did with a request."""

    status: int
    head: bytes
    backend: str


def _special() -> list[dict[str, Any]]:
    def one(name: str, to: str, **annotations: str) -> dict[str, Any]:
        return ingress(
            name, {f"{name}.example.com": {"/": to, "/a": "b"}}, annotations={k.replace("_", "-"): v for k, v in annotations.items()}
        )

    canary = {"canary": "true"}
    return [
        one("root", "a", app_root="/start"),
        one("moved", "a", permanent_redirect="https://new.example.com/x"),
        one("away", "a", temporal_redirect="https://new.example.com/y", force_ssl_redirect="true"),
        one("force", "a", force_ssl_redirect="true"),
        one("shut", "a", auth_type="basic", auth_secret="missing"),
        one("none", "empty"),
        one("gone", "missing"),
        one("stand", "empty", default_backend="c"),
        one("errors", "empty", default_backend="empty", custom_http_errors="503"),
        one("errors-else", "empty", default_backend="d", custom_http_errors="503"),
        one("cors", "a", enable_cors="true"),
        one("canary", "c"),
        ingress("canary-all", {"canary.example.com": {"/": "d"}}, annotations=canary | {"canary-weight": "100"}),
        one("quiet", "e"),
        ingress("canary-dead", {"quiet.example.com": {"/": "empty"}}, annotations=canary | {"canary-weight": "100"}),
        ingress("half", {"half.example.com": {"/a/": "a", "/b": "b"}}),
        ingress(
            "tls", {"tls.example.com": {"/": "a"}}, tls={"cert": ["tls.example.com"]}, annotations={"server-alias": "nick.tls.example.com"}
        ),
        ingress("wtls", {"*.wtls.example.com": {"/": "a"}}, tls={"cert": ["*.wtls.example.com"]}),
        ingress("plain-wtls", {"plain.wtls.example.com": {"/": "b"}}),
    ]


def _objects(ports: dict[str, int], chance: random.Random) -> list[dict[str, Any]]:
    out = [*(o for s in SERVICES for o in service(s, [ports[s]])), *service("empty", [])]
    out += [config_map({"log-format-upstream": LOG, "log-format-escape-json": "true", "enable-access-log-for-default-backend": "true"})]
    for h in range(3):
        for n in range(4):
            rules = [rule(f"lit-{h}.example.com", chance.choice(LITERAL), chance.choice(KINDS), chance.choice(SERVICES)) for _ in range(3)]
            out.append(typed(f"lit-{h}-{n}", *rules))
            rules = [
                rule(f"rex-{h}.example.com", chance.choice(PATTERNS), "ImplementationSpecific", chance.choice(SERVICES)) for _ in range(3)
            ]
            out.append(typed(f"rex-{h}-{n}", *rules, annotations={"use-regex": "true"}))
    regex = {"use-regex": "true"}
    return [
        *out,
        typed("mixed-literal", *(rule("mixed.example.com", p, k, s) for p, k, s in [("/a", "Exact", "a"), ("/a/b", "Prefix", "b"), ("/(a", "Prefix", "c")])),
        typed("mixed-regex", rule("mixed.example.com", "/A[b/]+", "ImplementationSpecific", "d"), annotations=regex),
        typed("rewrite", rule("rewrite.example.com", "/a(/|$)(.*)", "ImplementationSpecific", "a"), annotations={"rewrite-target": "/new/$2/$1$3"}),
        typed("rewrite-more", rule("rewrite.example.com", "/b", "Prefix", "b"), annotations={"rewrite-target": "/"}),
        ingress("wild", {"*.w.example.com": {"/": "a", "/a": "b"}, "named.w.example.com": {"/a": "c"}}),
        ingress("alias", {"alias.example.com": {"/": "d"}}, annotations={"server-alias": "nick.example.org,*.nick.example.org,~^re[0-9]+\\.,pre.*"}),
        ingress("alias-too", {"alias-too.example.com": {"/": "e"}}, annotations={"server-alias": "*.y.nick.example.org,~re,.dot.example.net,pre.a.*"}),
        ingress("idn", {"xn--bcher-kva.example.com": {"/": "e"}}),
        typed("rest", {k: v for k, v in rule("", "/rest", "Prefix", "c").items() if k != "host"}),
        tls_secret("cert", "tls.example.com", "*.wtls.example.com"),
        *_special(),
    ]  # fmt: skip


def _service(name: str) -> dict[str, Any]:
    return {"service": {"name": name, "port": {"number": 80}}}


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Recorder]]:
    """They answer with their name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(recorder(body=name.encode())) for name in SERVICES}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, backends: dict[str, Recorder]) -> Iterator[Edge]:
    objects = _objects({name: found.port for name, found in backends.items()}, random.Random(7))
    with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
        yield made


def _path(chance: random.Random) -> str:
    start = chance.choice(STARTS).replace(" ", "%20").encode()
    path = start + b"".join(chance.choice(PIECES) for _ in range(chance.randint(0, 4)))
    if chance.random() < 0.1:
        path += chance.choice(BAD)
    return path.decode("utf-8", "surrogateescape")


def _urls(chance: random.Random) -> Iterator[tuple[str, str]]:
    """(authority, path)."""
    matching = [h for h in HOSTS if "lit" in h or "rex" in h or "mixed" in h or "rewrite" in h]
    yield from ((chance.choice(matching), _path(chance)) for _ in range(REQUESTS))
    yield from ((host, path) for host in HOSTS for path in ("/", "/a/x"))
    yield from ((chance.choice(HOSTS), path) for path in AGAINST for _ in range(3))
    yield from ((host, path) for host in SPECIAL for path in ("/", "/a", "/b/c", "/zz/../", "//a?q=/"))


def _send(edge: Edge, authority: str, target: str, method: str = "GET") -> Seen:
    host = authority.rpartition("@")[2].replace("b\u00fccher", "xn--bcher-kva").encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: ".encode("utf-8", "surrogateescape") + host + b"\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", edge.settings.http_port), 30) as connection:
        connection.sendall(head)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    top, _, body = answer.partition(b"\r\n\r\n")
    status = int(answer.split(b" ", 2)[1])
    return Seen(status, top, body.decode() if status == 200 else "")


def _log(edge: Edge) -> dict[str, dict[str, str]]:
    lines = (json.loads(line) for line in edge.access_log())
    return {line["n"]: line for line in lines if line["n"]}


def _compare(answer: ExplainAnswer, seen: Seen, line: dict[str, str] | None) -> Iterator[str]:
    """What they disagree about."""
    if answer.status or not seen.backend:
        if answer.status != seen.status:
            yield f"status {answer.status}, nginx {seen.status} {seen.backend}"
        elif 300 < seen.status < 400 and not _goes_there(answer, seen):
            yield f"{answer.notes}, nginx {seen.head!r}"
    elif seen.backend != _expected(answer):
        yield f"backend {_expected(answer)}, nginx {seen.backend}"
    if line is not None and line["ingress"] != "/" and (line["ingress"], line["path"]) != (answer.ingress, answer.matched_path):
        yield f"{answer.ingress} {answer.matched_path}, nginx {line['ingress']} {line['path']}"


def _expected(answer: ExplainAnswer) -> str:
    """The name of the Service. The canaries here get everything or nothing."""
    canary = next(
        (n.split(",")[0].removeprefix("canary ") for n in answer.notes if n.startswith("canary ") and n.endswith("weight 100 of 100")), ""
    )
    return (canary or answer.backend).partition("/")[2].partition(":")[0]


def _goes_there(answer: ExplainAnswer, seen: Seen) -> bool:
    told = next(n.split()[2].rstrip(":") for n in answer.notes if n.startswith(f"{seen.status} to "))
    where = next(line for line in seen.head.decode().splitlines() if line.lower().startswith("location: ")).split()[1]
    if told == "https":
        return where.startswith("https://")
    return where.partition("?")[0].endswith(told) if told.startswith("/") else where == told


def test_they_agree(edge: Edge) -> None:
    asked = list(_urls(random.Random(11)))
    seen, told = [], []
    for number, (authority, path) in enumerate(asked):
        target = f"{path}{'&' if '?' in path else '?'}n={number}"
        seen.append(_send(edge, authority, target))
        told.append(explain(edge.engine, ExplainQuestion(url=f"http://{authority}{target}")))
    logged = sum(s.status != 400 for s in seen)
    until(lambda: len(_log(edge)) >= logged, "all requests are in the log")
    log = _log(edge)
    wrong = [
        f"{authority} {path!r}: {found}"
        for number, (authority, path) in enumerate(asked)
        for found in _compare(told[number], seen[number], log.get(str(number)))
    ]
    assert not wrong, "\n".join(wrong)
    assert {t.match for t in told} == {"", "exact", "prefix", "regex", "default", "slash"}
    assert {t.status for t in told} == {0, 200, 301, 302, 308, 400, 404, 503}


def _names(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Ingresses whose hosts and aliases overlap as often as they can."""
    aliases = ["a.b", "*.b", "*.a.b", "a.*", "a.b.*", ".b.a", "b.b.a", "~^a.*b$", "~^[ab]\\.", "~*B\\.A$", "c_d.b", "*.c", "~^c|d$", "~."]
    hosts = ["a", "b", "a.b", "b.a", "*.a", "*.b", "*.a.b", "*.b.a", "a.a.b", "c.d", "a.b.c", "*.b.c", "x.example"]
    for number, host in enumerate(chance.sample(hosts, 9)):
        said = {"server-alias": ",".join(chance.sample(aliases, 2))} if chance.random() < 0.7 else {}
        yield ingress(f"n{number}", {host: {f"/{number}": chance.choice(SERVICES)}}, annotations=said)


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_about_names_at_random(tmp_path: Path, backends: dict[str, Recorder], seed: int) -> None:
    chance = random.Random(seed)
    objects = [*(o for s in SERVICES for o in service(s, [backends[s].port])), *_names(chance)]
    with running(tmp_path, objects, expected=EXPECTED) as edge:
        for _ in range(150):
            labels = [chance.choice(["a", "b", "b", "A", "c", "d", "a-b", "c_d", "*", "~"]) for _ in range(chance.randint(1, 4))]
            host = ".".join(labels) + chance.choice(["", "", "", ".", ":80", ".:80"])
            row = explain(edge.engine, ExplainQuestion(url=f"http://{host}/")).matched_host
            served = [n for n in range(9) if _send(edge, host, f"/{n}").status == 200]
            assert [n for n in range(9) if f'"/{n}"' in edge.engine.rows[f"h/{row}"].decode()] == served, host


@pytest.mark.parametrize(("default", "errors"), [("default/d", "503"), ("default/empty", "418"), ("default/missing", "503")])
def test_they_agree_about_a_default_backend(tmp_path: Path, backends: dict[str, Recorder], default: str, errors: str) -> None:
    objects = [
        *(o for s in SERVICES for o in service(s, [backends[s].port])),
        *service("empty", []),
        config_map({"custom-http-errors": errors}),
        ingress("named", {"named.example.com": {"/a": "a", "/e": "empty", "/m": "missing"}}, annotations={"force-ssl-redirect": "false"}),
        ingress("found", {"found.example.com": {"/a": "a"}}, annotations={"custom-http-errors": "404", "default-backend": "c"}),
        ingress(
            "lost",
            {"lost.example.com": {"/a": "a"}},
            annotations={"custom-http-errors": "404", "default-backend": "c", "disable-proxy-intercept-errors": "true"},
        ),
        ingress("own", {"own.example.com": {"/a": "a"}})
        | {"spec": {"ingressClassName": "nginx", "defaultBackend": _service("b"), "rules": [{"host": "own.example.com"}]}},
    ]
    with running(tmp_path, objects, flags=Flags(default_backend_service=default)) as edge:
        for authority in ("named.example.com", "found.example.com", "lost.example.com", "own.example.com", "nobody.example.com"):
            for path in ("/", "/a", "/e", "/m", "/zz"):
                seen, answer = _send(edge, authority, path), explain(edge.engine, ExplainQuestion(url=authority + path))
                assert not list(_compare(answer, seen, None)), (authority, path)


def test_they_agree_about_a_catch_all(tmp_path: Path, backends: dict[str, Recorder]) -> None:
    claims = ingress("all", {}) | {"spec": {"ingressClassName": "nginx", "defaultBackend": _service("b")}}
    objects = [*(o for s in SERVICES for o in service(s, [backends[s].port])), claims, ingress("named", {"named.example.com": {"/a": "a"}})]
    with running(tmp_path, objects) as edge:
        for authority in ("named.example.com", "nobody.example.com", "[::1]"):
            for path in ("/", "/a", "/healthz", "/x/../nginx_status"):
                seen, answer = _send(edge, authority, path), explain(edge.engine, ExplainQuestion(url=authority + path))
                found = list(_compare(answer, seen, None)) if "status" not in path else []
                assert (found, answer.ingress == "default/all") == ([], authority != "named.example.com" and path in ("/", "/a"))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PURGE", "TRACE", "CONNECT", "get", "G3T"])
def test_they_agree_about_methods(edge: Edge, method: str) -> None:
    for host in ("canary.example.com", "cors.example.com"):
        seen = _send(edge, host, "/", method)
        answer = explain(edge.engine, ExplainQuestion(url=host, method=method))
        assert (answer.status or 200) == seen.status


@pytest.mark.parametrize(
    ("host", "path"),
    [("force.example.com", "/"), ("tls.example.com", "/a"), ("one.wtls.example.com", "/"), ("root.example.com", "/"), ("nobody.example.com", "/rest"), ("half.example.com", "/a")],
)  # fmt: skip
def test_they_agree_over_tls(edge: Edge, host: str, path: str) -> None:
    status, _, body = edge.get(host, path, tls=True)
    answer = explain(edge.engine, ExplainQuestion(url=f"https://{host}{path}"))
    assert status == (answer.status or 200)
    assert answer.status or body.decode() == _expected(answer)


@pytest.mark.parametrize(
    "host",
    ["tls.example.com", "TLS.example.com.", "nick.tls.example.com", "one.wtls.example.com", "plain.wtls.example.com", "nobody.example.com"],
)
def test_they_agree_about_certificates(edge: Edge, host: str) -> None:
    shown = peer_certificate(edge.settings.https_port, host)
    digest = explain(edge.engine, ExplainQuestion(url=f"https://{host}/")).certificate
    row = msgspec.json.decode(edge.engine.rows[f"c/{digest}"], type=CertificateRow) if digest else None
    own = x509.load_pem_x509_certificate((edge.settings.directory / "node.crt").read_bytes())
    assert shown == (x509.load_pem_x509_certificate(row.chain.encode()) if row else own)


@pytest.mark.parametrize("target", ["/a/x%20y", "/a", "/a/", "/a//b/../c", "/a/%C3%A9%ff", "/b/zz", "/A/q"])
def test_they_agree_about_what_a_rewrite_makes(edge: Edge, backends: dict[str, Recorder], target: str) -> None:
    seen = _send(edge, "rewrite.example.com", target)
    received = unquote_to_bytes(backends[seen.backend].last_line.split()[1]).decode("utf-8", "backslashreplace")
    notes = explain(edge.engine, ExplainQuestion(url=f"rewrite.example.com{target}")).notes
    assert f"the URI becomes {received}" in [n.split(" (rewrite-target")[0] for n in notes]
