"""TCP and UDP services on a node where things go wrong: nginx's module is missing, its master dies, its files are lost."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.shared.contracts.version import Manifest
from services.shared.flags import Flags
from tests.support.compiling import upsert
from tests.support.echo import ask_tcp, tcp_echo
from tests.support.nats import free_port
from tests.support.node import Rig, one_node
from tests.support.objects import config_map, port_service
from tests.support.up import free_block

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

FLAGS = Flags(tcp_services_configmap="ingress-nginx/tcp")
WITHOUT_MODULE = (
    "import services.applier.nodeconf as n; n.STREAM_MODULE_FILES = ('none.so',); from services.cli.__main__ import main; main()"
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with one_node(tmp_path, flags=FLAGS) as made:
        yield made


async def serving(rig: Rig, port: int, endpoint: int) -> Manifest:
    for obj in (*port_service("db", [("127.0.0.1", endpoint)]), config_map({str(port): "default/db:main"}, "tcp")):
        rig.engine.apply(upsert(obj))
    return await rig.commit("one.example.com")


async def answer(port: int) -> bytes:
    try:
        return await asyncio.to_thread(ask_tcp, port)
    except OSError:
        return b"refused"


async def until_answer(port: int, wanted: bytes) -> None:
    async with asyncio.timeout(30):
        while await answer(port) != wanted:
            await asyncio.sleep(0.05)


async def test_a_node_without_the_module_serves_everything_else_and_says_so(rig: Rig) -> None:
    port = free_port()
    manifest = await serving(rig, port, 1)
    rig.start(program=(sys.executable, "-c", WITHOUT_MODULE))
    await rig.live(manifest)
    (stream,) = (p.hash for p in rig.engine.bundle.policies if p.scope == "stream")
    report = await rig.report(lambda r: stream in r.refused)
    assert "none.so" in report.refused[stream]
    assert await rig.status("one.example.com") == 200
    assert await answer(port) == b"refused"
    second = await rig.commit("two.example.com")
    await rig.live(second)
    assert await rig.status("two.example.com") == 200


async def test_a_killed_master_is_replaced_on_the_same_ports(rig: Rig) -> None:
    port = free_port()
    with tcp_echo("db") as db:
        manifest = await serving(rig, port, db)
        rig.start()
        await rig.live(manifest)
        assert await answer(port) == b"db:hi"
        master = rig.nginx.pid
        rig.nginx.kill()
        await rig.report(lambda r: "was started again" in r.last_error)
        async with asyncio.timeout(30):
            while rig.nginx.pid == master:
                await asyncio.sleep(0.05)
        await until_answer(port, b"db:hi")


async def test_lost_files_come_back_with_the_applier(rig: Rig) -> None:
    port = free_port()
    with tcp_echo("db") as db:
        manifest = await serving(rig, port, db)
        rig.start()
        await rig.live(manifest)
        rig.send(signal.SIGKILL)
        await rig.ended()
        assert await answer(port) == b"db:hi", "nginx goes on alone"
        shutil.rmtree(rig.directory / "streams")
        assert await answer(port) == b""
        rig.start()
        await until_answer(port, b"db:hi")


async def test_a_port_that_was_lost_while_the_node_was_down_does_not_keep_it_down(rig: Rig) -> None:
    port = free_port()
    with tcp_echo("db") as db:
        manifest = await serving(rig, port, db)
        rig.start()
        await rig.live(manifest)
        rig.send(signal.SIGTERM)
        await rig.ended()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            rig.start()
            await rig.report(lambda r: f"tcp port {port} is taken by another process" in r.last_error)
            assert await rig.status("one.example.com") == 200
        await until_answer(port, b"db:hi")


async def test_many_ports_do_not_end_at_the_soft_limit_of_files(rig: Rig) -> None:
    base = free_block(150)
    with tcp_echo("db") as db:
        for obj in (*port_service("db", [("127.0.0.1", db)]), config_map({str(base + n): "default/db:main" for n in range(150)}, "tcp")):
            rig.engine.apply(upsert(obj))
        manifest = await rig.commit("one.example.com")
        rig.start(prefix=("prlimit", "--nofile=256:20000"))
        await rig.live(manifest)
        assert {await answer(base + n) for n in (0, 75, 149)} == {b"db:hi"}
