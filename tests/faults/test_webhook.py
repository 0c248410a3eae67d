"""The webhook as a process: without a bus, without a compiler, under bombs and slow clients, with a certificate that changes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.webhook.certificate import CertificatePaths, make_certificate
from services.webhook.server import MAX_CONNECTIONS
from tests.support.faults import PeakMemory, Service, services, strace
from tests.support.nats import NatsServer, free_port
from tests.support.reviews import answer, ingress, review

pytestmark = pytest.mark.nats

MEGABYTE = 1 << 20
ANSWER_SECONDS = 10
"""The API server's time: with the webhook's own deadline of 2 s there is room for a loaded machine."""


class Rig:
    """A webhook process and a bus without anybody to ask on it."""

    def __init__(self, directory: Path, server: NatsServer) -> None:
        self.server = server
        self.port = free_port()
        self.paths = make_certificate(directory / "certificate")
        files = ("--certificate", str(self.paths.certificate), "--key", str(self.paths.key))
        self.service = Service(directory / "webhook.log", "webhook", *files, "--port", str(self.port), "--nats-url", server.url)

    async def answer(self, obj: Any = None) -> dict[str, Any]:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await asyncio.to_thread(answer, self.port, review(obj))

    async def listening(self) -> None:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port)).close()
                    return
                await asyncio.sleep(0.02)

    async def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes, until the server closes."""
        context = ssl.create_default_context(cafile=str(self.paths.ca))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname="localhost")
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 30)
        except OSError:
            return b""
        finally:
            writer.close()

    async def certificate(self) -> bytes:
        return (await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", self.port))).encode()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with NatsServer(tmp_path / "nats") as server:
        made = Rig(tmp_path, server)
        async with services(made.service):
            await made.listening()
            yield made


HOSTILE = ingress() | {"spec": {"ingressClassName": "nginx", "rules": [{"host": "x;\n}", "http": {"paths": []}}]}}


async def test_without_a_compiler_and_without_a_bus_the_local_checks_remain(rig: Rig) -> None:
    for gone in ("compiler", "bus"):
        if gone == "bus":
            rig.server.kill()
        allowed, denied = await rig.answer(), await rig.answer(HOSTILE)
        assert allowed["allowed"], gone
        assert "skipped" in allowed["warnings"][0]
        assert not denied["allowed"], gone


def _post(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["POST /networking/v1/ingresses HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close", *headers])
    return f"{head}\r\n\r\n".encode() + body


BOMBS = {
    "depth": _post(b'{"a":' * 400_000),
    "size": _post(b" " * (40 * MEGABYTE)),
    "values": _post(b"[" + b"{}," * 900_000 + b"{}]"),
    "digits": _post(b'{"a": ' + b"9" * (2 * MEGABYTE) + b"}"),
    "keys": _post(json.dumps({f"{n:x}": 0 for n in range(140_000)}).encode()),
    "gzip": _post(gzip.compress(b" " * (200 * MEGABYTE)), "Content-Encoding: gzip"),
    "annotations": _post(json.dumps(review(ingress(annotations={f"a{n}": "x" * 100 for n in range(20_000)}))).encode()),
}


async def test_bombs_cost_bounded_memory_and_others_are_answered_meanwhile(rig: Rig) -> None:
    await rig.answer()
    with PeakMemory(rig.service.process) as memory:
        for name, bomb in BOMBS.items():
            throwing = [asyncio.create_task(rig.raw(bomb)) for _ in range(4)]
            assert (await rig.answer())["allowed"], name
            assert not (await rig.answer(HOSTILE))["allowed"], name
            endings = await asyncio.gather(*throwing)
            if name != "annotations":  # that one is within the bounds
                assert not any(b" 200 " in e[:20] for e in endings), name
    assert memory.growth < 64 * MEGABYTE


async def test_many_slow_clients_do_not_keep_the_api_server_out(rig: Rig) -> None:
    context = ssl.create_default_context(cafile=str(rig.paths.ca))
    slow = []
    with PeakMemory(rig.service.process) as memory:
        for _ in range(MAX_CONNECTIONS - 20):
            slow.append(await asyncio.open_connection("127.0.0.1", rig.port, ssl=context, server_hostname="localhost"))
            slow[-1][1].write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
        assert (await rig.answer())["allowed"]
        async with asyncio.timeout(60):
            endings = await asyncio.gather(*(reader.read() for reader, _ in slow), return_exceptions=True)
        assert len(endings) == len(slow), "all of them were ended"
        assert (await rig.answer())["allowed"]
    for _, writer in slow:
        writer.close()
    assert memory.growth < 64 * MEGABYTE


async def test_a_certificate_is_replaced_while_it_serves(rig: Rig, tmp_path: Path) -> None:
    before = await rig.certificate()
    process = rig.service.process
    renewed = make_certificate(tmp_path / "renewed", ("localhost", "127.0.0.1"))
    _swap(rig.paths, renewed)
    async with asyncio.timeout(60):
        while await rig.certificate() == before:
            assert (await rig.answer())["allowed"]
            await asyncio.sleep(0.2)
    assert await rig.certificate() == renewed.certificate.read_bytes()
    rig.paths.certificate.write_text("garbage")
    assert (await rig.answer())["allowed"], "what cannot be used is left alone"
    assert process.is_running()


def _swap(used: CertificatePaths, renewed: CertificatePaths) -> None:
    """As a mounted Secret changes: one file after the other."""
    for old, new in ((used.certificate, renewed.certificate), (used.key, renewed.key), (used.ca, renewed.ca)):
        old.write_bytes(new.read_bytes())


async def test_hostile_reviews_execute_nothing_and_open_no_file(rig: Rig, tmp_path: Path) -> None:
    await rig.answer(HOSTILE)  # whatever is imported late is imported now
    await rig.answer()
    seen = tmp_path / "strace"
    with strace(rig.service.process.pid, "-e", "trace=execve,execveat,fork,vfork,openat,unlink,rename", output=seen):
        for text in ("$(id)", "`id`;", "../../etc/passwd", "%2e%2e/", "x\u0000y", "{{7*7}}", "'; content_by_lua_block {os.execute('id')}"):
            hostile = ingress(annotations={"nginx.ingress.kubernetes.io/rewrite-target": text})
            hostile["spec"]["rules"][0]["http"]["paths"][0]["path"] = "/" + text
            await rig.answer(hostile)
    assert [line for line in seen.read_text().splitlines() if "tls." not in line] == []
