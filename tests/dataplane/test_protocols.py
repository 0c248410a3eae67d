"""Other protocols than HTTP/1.1 in clear: HTTPS and gRPC to the backend, websockets (behaviours 4.4)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import websockets.sync.client

from services.webhook.certificate import make_certificate
from tests.support.backends import echoes
from tests.support.edge import Edge, running
from tests.support.objects import ingress, service, tls_secret

pytestmark = pytest.mark.nginx

METHOD = "/test.Echo/Say"


def _say(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Each message in capitals; at the end a trailer, which a client only sees if nginx passes trailers on."""
    for message in messages:
        yield message.upper()
    context.set_trailing_metadata((("x-count", "done"),))


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no annotations
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(_say)


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
        tls = {"all": [f"{h}.example.com" for h in ("web", "grpc", "grpcs")]}
        objects = [
            *service("web", [ports["web"]]),
            *service("secured", [tls_ports["secured"]]),
            *service("grpc", [grpc_ports[0]]),
            *service("grpcs", [grpc_ports[1]]),
            tls_secret("all", *tls["all"]),
            ingress("web", {"web.example.com": {"/": "web"}}, tls=tls, annotations={"ssl-redirect": "false"}),
            ingress("grpc", {"grpc.example.com": {"/": "grpc"}}, tls=tls, annotations={"backend-protocol": "GRPC"}),
            ingress("grpcs", {"grpcs.example.com": {"/": "grpcs"}}, tls=tls, annotations={"backend-protocol": "grpcs"}),
            ingress("https", {"https.example.com": {"/": "secured"}}, annotations={"backend-protocol": "HTTPS"}),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects) as made:
            yield made


@pytest.mark.parametrize("host", ["grpc.example.com", "grpcs.example.com"])
def test_grpc_streams_end_to_end(edge: Edge, host: str) -> None:
    # The certificate that nginx shows is self-made; Python's grpc cannot be told to accept any, so it is fetched first.
    credentials = grpc.ssl_channel_credentials(_shown(edge, host).encode())
    options = (("grpc.ssl_target_name_override", host), ("grpc.default_authority", host))
    with grpc.secure_channel(f"127.0.0.1:{edge.settings.https_port}", credentials, options) as channel:
        call = channel.stream_stream(METHOD)(iter([b"one", b"two", b"x" * 100_000]), timeout=30)
        assert list(call) == [b"ONE", b"TWO", b"X" * 100_000]
        assert ("x-count", "done") in [(k, v) for k, v in call.trailing_metadata()]
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.stream_stream("/test.Echo/Other")(iter([b"x"]), timeout=30))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def _shown(edge: Edge, host: str) -> str:
    with (
        socket.create_connection(("127.0.0.1", edge.settings.https_port), 10) as raw,
        _client().wrap_socket(raw, server_hostname=host) as tls,
    ):
        return ssl.DER_cert_to_PEM_cert(tls.getpeercert(True) or b"")


def test_an_https_backend(edge: Edge) -> None:
    seen = edge.seen("https.example.com", "/x")
    assert (seen["name"], seen["path"]) == ("secured", "/x")


def test_https_backends_can_upgrade_too(edge: Edge) -> None:
    assert _echoed(edge, "https.example.com", ["a"]) == ["a"]


# --- websockets


def _client() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _echoed(edge: Edge, host: str, messages: list[str], *, tls: bool = False) -> list[str]:
    """What comes back over one websocket."""
    port = edge.settings.https_port if tls else edge.settings.http_port
    raw = socket.create_connection(("127.0.0.1", port), 30)
    with websockets.sync.client.connect(f"{'wss' if tls else 'ws'}://{host}/x", sock=raw, ssl=_client() if tls else None) as connection:
        out = []
        for message in messages:
            connection.send(message)
            out.append(str(connection.recv(30)))
        return out


@pytest.mark.parametrize("tls", [False, True])
def test_websockets(edge: Edge, tls: bool) -> None:
    messages = ["one", "", "x" * 500_000, "\u00e4\u00f6"]
    assert _echoed(edge, "web.example.com", messages, tls=tls) == messages


def test_a_websocket_outlives_changes_of_its_route(edge: Edge) -> None:
    raw = socket.create_connection(("127.0.0.1", edge.settings.http_port), 30)
    with websockets.sync.client.connect("ws://web.example.com/", sock=raw) as connection:
        for n in range(5):
            edge.update(ingress("later", {f"later{n}.example.com": {"/": "web"}}))
            connection.send(f"{n}")
            assert connection.recv(30) == f"{n}"


def test_other_requests_are_not_upgraded(edge: Edge) -> None:
    headers = edge.seen("web.example.com")["headers"]
    assert headers.get("connection", "").lower() in ("", "keep-alive")
    assert "upgrade" not in headers
