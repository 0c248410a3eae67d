"""TCP and UDP services through a real nginx: where connections go, the PROXY protocol, and endpoints that change without a reload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from services.shared.flags import Flags
from tests.support.echo import ask_tcp, ask_udp, tcp_echo, udp_echo
from tests.support.edge import Edge, running
from tests.support.nats import free_port
from tests.support.objects import config_map, port_service

FLAGS = Flags(tcp_services_configmap="ingress-nginx/tcp", udp_services_configmap="ingress-nginx/udp")
CLOSED = [r'no host in upstream ""']
"""nginx's words where there is no endpoint."""


class Ports:
    """Free ports under names."""

    def __init__(self, *names: str) -> None:
        self._ports = {name: free_port() for name in names}

    def __getattr__(self, name: str) -> int:
        return self._ports[name]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def entries(protocol: str, of: Mapping[int, str]) -> dict[str, Any]:
    return config_map({str(port): value for port, value in of.items()}, protocol)


def start(stack: ExitStack, directory: Path, *objects: Mapping[str, Any], closed: bool = False, address: str = "127.0.0.1") -> Edge:
    return stack.enter_context(running(directory, objects, flags=FLAGS, expected=CLOSED if closed else (), address=address))


def test_tcp_goes_to_all_endpoints_and_follows_them_without_a_reload(tmp_path: Path, stack: ExitStack) -> None:
    one, two, three = (stack.enter_context(tcp_echo(name)) for name in ("one", "two", "three"))
    ports = Ports("db")
    first = port_service("db", [("127.0.0.1", one), ("127.0.0.1", two)])
    edge = start(stack, tmp_path, *first, entries("tcp", {ports.db: "default/db:main"}), closed=True)
    assert {ask_tcp(ports.db) for _ in range(40)} == {b"one:hi", b"two:hi"}
    edge.update(*port_service("db", [("127.0.0.1", three), ("127.0.0.1", three)]))
    assert {ask_tcp(ports.db) for _ in range(10)} == {b"three:hi"}
    gone = [{**piece, "endpoints": []} for piece in first[1:]]
    edge.update(*gone)
    assert ask_tcp(ports.db) == b"", "nobody is there: closed"
    edge.update(*port_service("db", [("127.0.0.1", one)]))
    assert ask_tcp(ports.db) == b"one:hi"
    lines = [line for line in edge.access_log() if "TCP 200" in line]
    assert lines and lines[0].startswith("[127.0.0.1] [")


def test_a_service_that_is_not_there_closes_connections_until_it_is(tmp_path: Path, stack: ExitStack) -> None:
    ports = Ports("db")
    edge = start(stack, tmp_path, entries("tcp", {ports.db: "default/db:main"}), closed=True)
    assert ask_tcp(ports.db) == b""
    edge.update(*port_service("db", [("127.0.0.1", stack.enter_context(tcp_echo("late")))]))
    assert ask_tcp(ports.db) == b"late:hi"


def test_the_proxy_protocol_is_read_and_written(tmp_path: Path, stack: ExitStack) -> None:
    echo = stack.enter_context(tcp_echo("e"))
    ports = Ports("plain", "decode", "encode", "both")
    targets = {ports.plain: "", ports.decode: ":PROXY", ports.encode: "::PROXY", ports.both: ":PROXY:PROXY"}
    start(
        stack,
        tmp_path,
        *port_service("db", [("127.0.0.1", echo)]),
        config_map({"enable-real-ip": "true", "proxy-real-ip-cidr": "127.0.0.0/8"}),
        entries("tcp", {port: f"default/db:5432{proxy}" for port, proxy in targets.items()}),
    )
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4444 5555\r\n"
    assert ask_tcp(ports.plain) == b"e:hi"
    assert ask_tcp(ports.decode, header + b"hi") == b"e:hi"
    assert ask_tcp(ports.encode).startswith(b"e:PROXY TCP4 127.0.0.1 127.0.0.1 ")
    answer = ask_tcp(ports.both, header + b"hi")
    assert answer.startswith(b"e:PROXY TCP4 192.0.2.7 ") and b"192.0.2.1" not in answer.split(b"\r\n")[1]


def test_udp(tmp_path: Path, stack: ExitStack) -> None:
    echo, twice = stack.enter_context(udp_echo("u")), stack.enter_context(udp_echo("two", 2))
    ports = Ports("dns", "pair")
    edge = start(
        stack,
        tmp_path,
        *port_service("dns", [("127.0.0.1", echo)], "UDP", port=53),
        *port_service("pair", [("127.0.0.1", twice)], "UDP", port=53),
        config_map({"proxy-stream-responses": "2"}),
        entries("udp", {ports.dns: "default/dns:53", ports.pair: "default/pair:main"}),
        closed=True,
    )
    assert ask_udp(ports.dns) == [b"u:hi"]
    assert ask_udp(ports.pair, answers=2) == [b"two:hi", b"two:hi"]
    edge.update(*port_service("dns", [("127.0.0.1", twice)], "UDP", port=53))
    assert ask_udp(ports.dns)[0] == b"two:hi"
    with pytest.raises(ConnectionRefusedError):
        ask_tcp(ports.dns)


def test_ipv6_before_and_behind(tmp_path: Path, stack: ExitStack) -> None:
    six = stack.enter_context(tcp_echo("six", "::1"))
    ports = Ports("db")
    start(stack, tmp_path, *port_service("db", [("::1", six)]), entries("tcp", {ports.db: "default/db:main"}), address="")
    assert ask_tcp(ports.db) == b"six:hi"
    assert ask_tcp(ports.db, host="::1") == b"six:hi"


def test_one_port_for_both_protocols_and_a_great_many(tmp_path: Path, stack: ExitStack) -> None:
    tcp, udp = stack.enter_context(tcp_echo("t")), stack.enter_context(udp_echo("u"))
    ports = Ports("both", *(f"p{n}" for n in range(100)))
    many = {getattr(ports, f"p{n}"): "default/db:main" for n in range(100)}
    start(
        stack,
        tmp_path,
        *port_service("db", [("127.0.0.1", tcp)]),
        *port_service("dns", [("127.0.0.1", udp)], "UDP"),
        entries("tcp", {ports.both: "default/db:main", **many}),
        entries("udp", {ports.both: "default/dns:main"}),
    )
    assert ask_tcp(ports.both) == b"t:hi"
    assert ask_udp(ports.both) == [b"u:hi"]
    assert ask_tcp(ports.p99) == b"t:hi"
