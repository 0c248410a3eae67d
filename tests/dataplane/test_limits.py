"""Limits of body sizes, rates and connections (behaviours 10)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import echoes
from tests.support.edge import Edge, running, until
from tests.support.objects import config_map, ingress, service

pytestmark = pytest.mark.nginx

EXPECTED = (
    r"limiting (requests|connections)",
    "client intended to send too large (chunked )?body",
)
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with echoes("web") as (ports, _):
        web = {"/": "web"}
        plain = {
            "default": {},
            "small": {"proxy-body-size": "1k"},
            "unbuffered": {"proxy-body-size": "1k", "proxy-request-buffering": "off"},
            "unlimited": {"proxy-body-size": "0"},
            "rps": {"limit-rps": "2", "limit-burst-multiplier": "3"},
            "rps-too": {"limit-rps": "2", "limit-burst-multiplier": "3"},
            "rpm": {"limit-rpm": "6", "limit-burst-multiplier": "2"},
            "few": {"limit-connections": "2"},
            "few-too": {"limit-connections": "2"},
        }
        objects = [
            *service("web", [ports["web"]]),
            config_map({"limit-req-status-code": "429"}),
            *(ingress(name, {f"{name}.example.com": web}, annotations=said) for name, said in plain.items()),
        ]
        with running(tmp_path_factory.mktemp("edge"), objects, expected=EXPECTED) as made:
            yield made


@pytest.mark.parametrize("how", [[], ["-H", "Transfer-Encoding: chunked"]])
@pytest.mark.parametrize(
    ("name", "size", "status"),
    [
        ("small", 1024, "200"),
        ("small", 1025, "413"),
        ("small", 50_000, "413"),
        ("unbuffered", 1024, "200"),
        ("unbuffered", 50_000, "413"),
        ("default", MEGABYTE, "200"),
        ("default", MEGABYTE + 1, "413"),
        ("unlimited", 3 * MEGABYTE, "200"),
    ],
)
def test_body_sizes(edge: Edge, tmp_path: Path, how: list[str], name: str, size: int, status: str) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * size)
    answer = edge.curl("-o", "/dev/null", "-w", "%{http_code}", *how, "--data-binary", f"@{body}", host=f"{name}.example.com")
    assert answer.stdout == status


def _allowed(edge: Edge, host: str, count: int, address: str) -> tuple[int, float]:
    """(how many of `count` requests on one connection from `address` got 200, the others 429; how many seconds it took)."""
    began = time.monotonic()
    port = edge.settings.http_port
    urls = [f"http://{host}:{port}/?{n}" for n in range(count)]
    discard = [x for u in urls[1:] for x in ("-o", "/dev/null", u)]
    answer = edge.curl("--interface", address, "-w", "%{http_code}\n", *discard, "-o", "/dev/null", host=host, path="/?first")
    codes = Counter(answer.stdout.split())
    assert set(codes) <= {"200", "429"}
    assert sum(codes.values()) == count
    return codes["200"], time.monotonic() - began


@pytest.mark.parametrize(("name", "at_once", "a_second"), [("rps", 1 + 6, 2), ("rpm", 1 + 12, 0.1)])
def test_a_rate_and_its_burst(edge: Edge, name: str, at_once: int, a_second: float) -> None:
    found, seconds = _allowed(edge, f"{name}.example.com", 30, "127.0.0.1")
    assert at_once <= found <= at_once + a_second * seconds + 1


def test_each_client_and_each_ingress_counts_alone(edge: Edge) -> None:
    for host, address in (("rps.example.com", "127.0.0.2"), ("rps.example.com", "127.0.0.3"), ("rps-too.example.com", "127.0.0.2")):
        assert _allowed(edge, host, 7, address)[0] == 7, (host, address)


def _download(edge: Edge, host: str, address: str, stack: contextlib.ExitStack) -> int:
    """The status of a large answer whose body is not read: the request goes on until the stack is closed."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", edge.settings.http_port), 30, source_address=(address, 0)))
    connection.sendall(f"GET /?size={50 * MEGABYTE} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return int(connection.recv(1000).split()[1])


def test_so_many_connections_at_once(edge: Edge) -> None:
    with contextlib.ExitStack() as stack:
        taken = [_download(edge, "few.example.com", "127.0.0.1", stack) for _ in range(4)]
        assert taken == [200, 200, 503, 503]
        assert edge.get("few.example.com")[0] == 503
        assert _download(edge, "few.example.com", "127.0.0.2", stack) == 200, "each client counts alone"
        assert _download(edge, "few-too.example.com", "127.0.0.1", stack) == 200, "each Ingress counts alone"
        assert edge.get("default.example.com")[0] == 200
    until(lambda: edge.get("few.example.com")[0] == 200, "nginx has seen the connections close")
