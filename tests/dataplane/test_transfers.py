"""Large and slow transfers, timeouts, buffering, and client connections that are used again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import Recorder, echoes, pattern, recorder
from tests.support.clients import Connection
from tests.support.edge import Edge, running, until
from tests.support.objects import ingress, service, tls_secret

pytestmark = pytest.mark.nginx

MEGABYTE = 1024 * 1024
LARGE = 50 * MEGABYTE
EXPECTED = (r"upstream timed out \(110: Connection timed out\) while reading response header",)


@pytest.fixture(scope="module")
def large() -> Iterator[Recorder]:
    with recorder(body=pattern(LARGE)) as found:
        yield found


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, large: Recorder) -> Iterator[Edge]:
    with echoes("web") as (ports, _):
        tls = {"all": ["web.example.com", "direct.example.com"]}
        keep = {"ssl-redirect": "false", "proxy-body-size": "100m"}
        objects = [
            *service("web", [ports["web"]]),
            *service("large", [large.port]),
            tls_secret("all", *tls["all"]),
            ingress("web", {"web.example.com": {"/": "web"}}, tls=tls, annotations=keep),
            ingress("direct", {"direct.example.com": {"/": "web"}}, tls=tls, annotations=keep | {"proxy-request-buffering": "off"}),
            ingress("slow", {"slow.example.com": {"/": "web"}}, annotations={"proxy-read-timeout": "1"}),
            ingress("buffered", {"buffered.example.com": {"/": "large"}}, annotations={"proxy-buffering": "on"}),
            ingress("unbuffered", {"unbuffered.example.com": {"/": "large"}}),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
            yield made


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = tmp_path_factory.mktemp("upload") / "body"
    body.write_bytes(pattern(LARGE))
    return body


@pytest.mark.parametrize("host", ["web.example.com", "direct.example.com"])
@pytest.mark.parametrize(
    ("how", "tls"),
    [
        (["--http1.1"], False),
        (["--http1.1", "-H", "Transfer-Encoding: chunked"], False),
        (["--http1.1"], True),
        (["--http2"], True),
    ],
)
def test_uploads(edge: Edge, upload: Path, host: str, how: list[str], tls: bool) -> None:
    answer = edge.curl("-X", "POST", "-m", "60", *how, "--data-binary", f"@{upload}", host=host, tls=tls)
    found = json.loads(answer.stdout)
    assert (found["bytes"], found["sha256"]) == (LARGE, hashlib.sha256(pattern(LARGE)).hexdigest())


@pytest.mark.parametrize("kind", ["size", "chunks"])
@pytest.mark.parametrize(("how", "tls"), [("--http1.1", False), ("--http1.0", False), ("--http2", True)])
def test_downloads(edge: Edge, tmp_path: Path, kind: str, how: str, tls: bool) -> None:
    body = tmp_path / "body"
    answer = edge.curl(how, "-m", "60", "-o", str(body), "-w", "%{http_code}", host="web.example.com", path=f"/?{kind}={LARGE}", tls=tls)
    assert (answer.returncode, answer.stdout) == (0, "200")
    assert body.read_bytes() == pattern(LARGE)


def test_buffering_frees_the_backend_of_a_slow_client(edge: Edge, large: Recorder) -> None:
    def ask(host: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", edge.settings.http_port), 30)
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        return connection

    def rest(connection: socket.socket) -> int:
        return sum(len(x) for x in iter(lambda: connection.recv(MEGABYTE), b""))

    before = large.answered
    with ask("buffered.example.com") as idle:
        until(lambda: large.answered == before + 1, "the backend is done before its client has read anything")
        assert rest(idle) > LARGE
    with ask("unbuffered.example.com") as idle, ask("buffered.example.com") as other:
        until(lambda: large.answered == before + 2, "the second buffered answer overtakes the unbuffered one")
        assert rest(idle) > LARGE
        until(lambda: large.answered == before + 3, "now the unbuffered one is done")
        assert rest(other) > LARGE


def test_a_backend_that_is_too_slow_is_504(edge: Edge) -> None:
    assert edge.get("slow.example.com", "/?sleep=8")[0] == 504
    assert edge.get("slow.example.com", "/")[0] == 200
    assert edge.get("web.example.com", "/?sleep=1.5")[0] == 200, "only where the annotation says so"


def test_many_requests_on_one_client_connection(edge: Edge) -> None:
    async def ask() -> list[int]:
        connection = Connection(edge.settings.http_port)
        out = [(await connection.get("web.example.com", f"/?{n}")).status for n in range(100)]
        out += [(await connection.get(host)).status for host in ("nobody.example.com", "slow.example.com")]
        await connection.close()
        return out

    assert asyncio.run(ask()) == [200] * 100 + [404, 200]


@pytest.mark.parametrize("how", ["--http1.1", "--http2"])
def test_an_upload_does_not_cost_the_connection(edge: Edge, tmp_path: Path, how: str) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * (5 * MEGABYTE))
    url = f"https://web.example.com:{edge.settings.https_port}/"
    form = "%{num_connects} %{http_code}\n"
    sent = (how, "-o", "/dev/null", "-w", form, "--data-binary", f"@{body}", url, "-o", "/dev/null")
    assert edge.curl(*sent, host="web.example.com", tls=True).stdout.splitlines() == ["1 200", "0 200"]
