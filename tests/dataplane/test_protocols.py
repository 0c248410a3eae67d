"""Other protocols than HTTP/1.1 in clear, slow and large ones, and connections that are used again."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from services.webhook.certificate import make_certificate
from tests.support.edge import Edge, echoes
from tests.support.objects import ingress, service, tls_secret

pytestmark = pytest.mark.nginx

METHOD = "/test.Echo/Say"
MEGABYTE = 1024 * 1024


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no annotations
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(lambda messages, _: (m.upper() for m in messages))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("backend")
    make_certificate(directory)
    return directory


@pytest.fixture(scope="module")
def grpc_ports(certificate: Path) -> Iterator[tuple[int, int]]:
    """(in clear, with TLS)."""
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[_Echo()])
    plain = server.add_insecure_port("127.0.0.1:0")
    pair = ((certificate / "tls.key").read_bytes(), (certificate / "tls.crt").read_bytes())
    secured = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield plain, secured
    finally:
        server.stop(0).wait()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, certificate: Path, grpc_ports: tuple[int, int]) -> Iterator[Edge]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with echoes("web") as (ports, _), echoes("secured", tls=context) as (tls_ports, _):
        made = Edge(tmp_path_factory.mktemp("edge"))
        hosts = ["web", "grpc", "grpcs", "https"]
        tls = {"all": [f"{h}.example.com" for h in hosts]}
        keep = {"ssl-redirect": "false", "proxy-body-size": "100m"}
        made.start(
            [
                *service("web", [ports["web"]]),
                *service("secured", [tls_ports["secured"]]),
                *service("grpc", [grpc_ports[0]]),
                *service("grpcs", [grpc_ports[1]]),
                tls_secret("all", *tls["all"]),
                ingress("web", {"web.example.com": {"/": "web"}}, tls=tls, annotations=keep),
                ingress("grpc", {"grpc.example.com": {"/": "grpc"}}, tls=tls, annotations={"backend-protocol": "GRPC"}),
                ingress("grpcs", {"grpcs.example.com": {"/": "grpcs"}}, tls=tls, annotations={"backend-protocol": "GRPCS"}),
                ingress("https", {"https.example.com": {"/": "secured"}}, annotations={"backend-protocol": "HTTPS"}),
                ingress("slow", {"slow.example.com": {"/": "web"}}, annotations={"proxy-read-timeout": "1"}),
                ingress("buffered", {"buffered.example.com": {"/": "web"}}, annotations={"proxy-buffering": "on"}),
            ]
        )
        try:
            yield made
        finally:
            made.stop()


@pytest.mark.parametrize("host", ["grpc.example.com", "grpcs.example.com"])
def test_grpc_streams_end_to_end(edge: Edge, host: str) -> None:
    # The certificate that nginx shows is self-made; Python's grpc cannot be told to accept any, so it is fetched first.
    credentials = grpc.ssl_channel_credentials(_shown(edge, host).encode())
    options = (("grpc.ssl_target_name_override", host), ("grpc.default_authority", host))
    with grpc.secure_channel(f"127.0.0.1:{edge.settings.https_port}", credentials, options) as channel:
        say = channel.stream_stream(METHOD)
        assert list(say(iter([b"one", b"two", b"x" * 100_000]), timeout=20)) == [b"ONE", b"TWO", b"X" * 100_000]
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.stream_stream("/test.Echo/Other")(iter([b"x"]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def _shown(edge: Edge, host: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", edge.settings.https_port), 10) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        return ssl.DER_cert_to_PEM_cert(tls.getpeercert(True) or b"")


def test_an_https_backend(edge: Edge) -> None:
    seen = edge.seen("https.example.com", "/x")
    assert (seen["name"], seen["path"]) == ("secured", "/x")


def test_a_backend_that_is_too_slow_is_504_and_another_is_not(edge: Edge) -> None:
    began = time.monotonic()
    assert edge.get("slow.example.com", "/?sleep=30")[0] == 504
    assert time.monotonic() - began < 25
    assert edge.get("web.example.com", "/?sleep=1.5")[0] == 200


def test_buffering_frees_the_backend_of_a_slow_client(edge: Edge) -> None:
    def upstream_seconds(host: str) -> float:
        """How long the backend was kept busy with 30 MB for a client that reads nothing for two seconds."""
        with socket.create_connection(("127.0.0.1", edge.settings.http_port), 10) as connection:
            connection.sendall(f"GET /slow-client?size=30000000 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            time.sleep(2)
            while connection.recv(1 << 20):
                pass
        line = [x for x in edge.access_log() if "/slow-client" in x][-1]
        return float(line.split()[-3])

    assert upstream_seconds("web.example.com") >= 1.8, "off is ingress-nginx's default"
    assert upstream_seconds("buffered.example.com") < 1.8


def test_upstream_connections_are_used_again(edge: Edge) -> None:
    ports = [edge.seen("web.example.com")["from"] for _ in range(20)]
    assert len(set(ports)) <= 2, "one connection for each worker"


@pytest.mark.parametrize("how", [["-H", "Transfer-Encoding: chunked"], []])
def test_large_uploads(edge: Edge, tmp_path: Path, how: list[str]) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * (50 * MEGABYTE))
    found = json.loads(edge.curl("-X", "POST", *how, "--data-binary", f"@{body}", host="web.example.com").stdout)
    assert found["bytes"] == 50 * MEGABYTE


def test_http2_uploads_and_uses_its_connection_again(edge: Edge, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * (5 * MEGABYTE))
    form = "%{http_version} %{num_connects} %{http_code}\n"
    port = edge.settings.https_port
    url = f"https://web.example.com:{port}/"
    found = edge.curl(
        *("--http2", "-o", "/dev/null", "-w", form, "--data-binary", f"@{body}", url, "-o", "/dev/null"), host="web.example.com", tls=True
    )
    assert found.stdout.splitlines() == ["2 1 200", "2 0 200"]


def test_downloads(edge: Edge) -> None:
    found = edge.curl("-o", "/dev/null", "-w", "%{size_download}", host="web.example.com", path=f"/?size={50 * MEGABYTE}")
    assert found.stdout == str(50 * MEGABYTE)


def test_many_requests_on_one_client_connection(edge: Edge) -> None:
    async def ask() -> list[int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.http_port)
        out = []
        for _ in range(50):
            writer.write(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")).split(b":")[1])
            await reader.readexactly(length)
            out.append(int(head.split()[1]))
        writer.close()
        return out

    assert asyncio.run(ask()) == [200] * 50
