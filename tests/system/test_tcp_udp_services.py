"""TCP and UDP services of a running `sluice up` on two nodes: endpoints without a reload, ports with one, and nginx alone from its disk."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.backends import backends
from tests.support.echo import ask_tcp, ask_udp, tcp_echo, udp_echo
from tests.support.objects import config_map, ingress, many, port_service, service
from tests.support.up import SluiceUp, free_block, get

pytestmark = pytest.mark.nats

ARGUMENTS = ("--set-flag", "tcp-services-configmap=ingress-nginx/tcp", "--set-flag", "udp-services-configmap=ingress-nginx/udp")


def entries(protocol: str, of: Mapping[int, str]) -> str:
    return many(config_map({str(port): value for port, value in of.items()}, protocol))


@pytest.fixture
def up(tmp_path: Path) -> Iterator[SluiceUp]:
    made = SluiceUp(tmp_path, arguments=ARGUMENTS)
    with backends("web") as ports:
        made.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        with made:
            yield made


def answers(port: int) -> bytes:
    try:
        return ask_tcp(port)
    except OSError:
        return b"refused"


def test_ports_endpoints_and_nginx_alone(up: SluiceUp) -> None:
    port = free_block(6)
    with tcp_echo("one") as one, tcp_echo("two") as two, udp_echo("dns") as dns:
        up.write("db.yaml", many(*port_service("db", [("127.0.0.1", one)])))
        up.write("dns.yaml", many(*port_service("dns", [("127.0.0.1", dns)], "UDP", port=53)))
        up.write("tcp.yaml", entries("tcp", {port: "default/db:main"}))
        up.write("udp.yaml", entries("udp", {port + 2: "default/dns:53"}))
        up.wait()
        for node in (0, 1):
            up.until(lambda node=node: answers(port + node) == b"one:hi")  # type: ignore[misc]
            assert ask_udp(port + 2 + node) == [b"dns:hi"]
            assert get(up.http[node], "web.example.com")[0] == 200
        up.until(lambda: not up.status()["rollout"])

        before = up.reloads()
        up.write("db.yaml", many(*port_service("db", [("127.0.0.1", two)])))
        up.wait()
        assert [answers(port + node) for node in (0, 1)] == [b"two:hi", b"two:hi"]
        assert up.reloads() == before

        # nginx alone, with everything else dead
        directory = up.state / "nodes" / "node-0"
        assert up.stop() == 0
        assert answers(port) == b"refused"
        alone = subprocess.Popen(["/usr/sbin/nginx", "-p", str(directory), "-c", "current/nginx.conf", "-g", "daemon off;"])
        try:
            up.until(lambda: answers(port) == b"two:hi")
        finally:
            alone.send_signal(signal.SIGTERM)
            alone.wait(20)

        up.start()
        up.wait()
        assert [answers(port + node) for node in (0, 1)] == [b"two:hi", b"two:hi"]

        # no entry any more: the ports are closed
        up.write("tcp.yaml", entries("tcp", {}))
        up.write("udp.yaml", entries("udp", {}))
        up.wait()
        for node in (0, 1):
            up.until(lambda node=node: answers(port + node) == b"refused")  # type: ignore[misc]
            assert "stream {" not in (up.state / "nodes" / f"node-{node}" / "current" / "nginx.conf").read_text()


def test_a_port_that_is_taken_holds_up_nothing_and_is_served_once_it_is_free(up: SluiceUp) -> None:
    port = free_block(6)
    with tcp_echo("db") as db, contextlib.ExitStack() as other:
        holder = other.enter_context(socket.socket())
        holder.bind(("127.0.0.1", port))
        holder.listen()
        up.write("db.yaml", many(*port_service("db", [("127.0.0.1", db)])))
        up.write("tcp.yaml", entries("tcp", {port: "default/db:main", port + 2: "default/db:main", up.http[0]: "default/db:main"}))
        up.wait()
        up.until(lambda: answers(port + 2) == b"db:hi")
        up.until(lambda: answers(port + 1) == b"db:hi")
        assert f"tcp port {port} is taken by another process" in up.status()["nodes"][0]["last_error"]
        said = [p["message"] for verdict in up.status()["verdicts"] for p in verdict["problems"]]
        assert said == [f"port {up.http[0]} is the nodes' own, for http; choose another"]
        other.close()
        up.until(lambda: answers(port) == b"db:hi")
