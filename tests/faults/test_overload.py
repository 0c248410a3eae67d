"""Too much at once on one node: versions, long connections over many reloads, more connections than there are file descriptors; and a
master or a DNS server that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.applier.watch import HANG_SECONDS
from tests.support.backends import backends
from tests.support.clients import steady
from tests.support.compiling import upsert
from tests.support.faults import until
from tests.support.node import Rig, one_node, or_nothing, running
from tests.support.objects import ingress

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with one_node(tmp_path) as made:
        yield made


def _policy(n: int) -> dict[str, str]:
    """One that nginx has not loaded yet."""
    return {"proxy-read-timeout": str(100 + n)}


async def test_a_burst_of_versions_is_one_reload_a_second_and_the_newest_wins(rig: Rig) -> None:
    before = await rig.live(await running(rig))
    began = time.monotonic()
    async with steady([rig.http], "kept.example.com", lambda a: a.status in (200, 404), per_second=50, connections=2) as tally:
        for n in range(40):
            rig.engine.apply(upsert(ingress("kept", {"kept.example.com": {"/": "web"}})))
            await rig.commit(f"h{n}.example.com", _policy(n))
            await asyncio.sleep(0.05)
        after = await rig.live(await rig.commit("last.example.com", _policy(40)))
    seconds = time.monotonic() - began
    assert after.generation - before.generation <= seconds + 1
    assert after.reloads.get("policy", 0) < 20, "40 versions, each with a policy of its own"
    assert (await rig.status("last.example.com"), await rig.status("h39.example.com")) == (200, 404)
    assert [f for f in tally.failures if f.text[:1].isdigit()] == [], "wrong answers"
    assert len(tally.failures) <= 2 * after.reloads.get("policy", 0), "more than the idle connections that a reload closes"


@contextlib.contextmanager
def _idle() -> Iterator[list[socket.socket]]:
    """Connections that are there, and do nothing."""
    made: list[socket.socket] = []
    try:
        yield made
    finally:
        for one in made:
            one.close()


def _websocket(port: int, host: str) -> socket.socket:
    """One that has been accepted."""
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    made.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n".encode())
    assert made.recv(65536).startswith(b"HTTP/1.1 101")
    return made


async def test_500_idle_websockets_over_many_reloads_keep_few_old_workers(rig: Rig) -> None:
    """They would hold each generation's workers for four minutes (worker-shutdown-timeout); the oldest go earlier."""
    await running(rig)
    workers = len(rig.nginx.children())
    with _idle() as sockets:
        for n in range(5):
            sockets.extend([await asyncio.to_thread(_websocket, rig.http, "one.example.com") for _ in range(100)])
            await rig.live(await rig.commit("one.example.com", _policy(n)))
            await until(lambda: len(rig.draining()) <= 3 * workers)
            assert len(rig.nginx.children()) <= 4 * workers
        alive = [_alive(s) for s in sockets]
        assert all(alive[-200:]), "those of the last generations"
        assert not any(alive[:100]), "those of the oldest"
        assert await rig.status("one.example.com") == 200


def _alive(websocket: socket.socket) -> bool:
    websocket.setblocking(False)
    try:
        return websocket.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


async def test_more_connections_than_descriptors_delay_changes_and_break_nothing(rig: Rig) -> None:
    rig.start(prefix=("prlimit", "--nofile=400:400"))
    await rig.live(await rig.commit("one.example.com"))
    workers = {w.pid for w in rig.nginx.children()}
    with _idle() as sockets:
        for _ in range(900):  # the kernel's queue takes those that nginx cannot accept
            sockets.append(socket.create_connection(("127.0.0.1", rig.http), timeout=20))
        second = await rig.commit("two.example.com")
        await asyncio.sleep(HANG_SECONDS + 4)
        assert {w.pid for w in rig.nginx.children()} == workers, "full is not hung"
    await rig.live(second)
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (404, 200)


PER_SECOND = 100


async def test_a_killed_master_alone_costs_next_to_nothing(rig: Rig) -> None:
    await running(rig)
    async with steady([rig.http], "one.example.com", lambda a: a.status == 200, per_second=PER_SECOND, connections=4) as tally:
        for _ in range(2):
            master = rig.nginx
            orphans = master.children()
            master.send_signal(signal.SIGKILL)
            await until(functools.partial(_replaced, rig, master))
            await until(functools.partial(_gone, orphans))
    assert [f for f in tally.failures if f.text[:1].isdigit()] == [], "no wrong answer"
    assert len(tally.failures) <= 2 * PER_SECOND, "less than a second each time"
    second = await rig.commit("two.example.com", _policy(1))
    await rig.live(second)
    assert await or_nothing(rig, "two.example.com") == 200


def _replaced(rig: Rig, master: psutil.Process) -> bool:
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        return rig.nginx.pid != master.pid and bool(rig.nginx.children())
    return False


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() for p in processes)


async def test_a_dns_server_that_does_not_answer_holds_up_nothing(rig: Rig, tmp_path: Path) -> None:
    configuration = tmp_path / "resolv.conf"
    configuration.write_text("nameserver 127.53.53.53\noptions timeout:20 attempts:1\n")
    inside = f'mount --bind {configuration} /etc/resolv.conf && exec "$@"'
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.53.53.53", 53))
        silent.settimeout(20)
        rig.engine.apply(upsert(_external("far", "far.example.org")))
        rig.engine.apply(upsert(ingress("far", {"far.example.com": {"/": "far"}})))
        first = await rig.commit("one.example.com")
        rig.start(prefix=("unshare", "--mount", "sh", "-c", inside, "sh"))
        await rig.live(first)
        assert b"far" in await asyncio.to_thread(silent.recv, 4096), "it was asked"
        assert await rig.status("one.example.com") == 200
        assert await rig.status("far.example.com") in (502, 503)
        async with asyncio.timeout(25):  # not once the time in which a resolver gives up, for each version
            for n in range(5):
                await rig.live(await rig.commit(f"h{n}.example.com"))
                assert await rig.status(f"h{n}.example.com") == 200
            await rig.live(await rig.commit("one.example.com", _policy(1)))
        rig.send(signal.SIGKILL)  # an orderly end would wait for the resolver


def _external(name: str, points_to: str, port: int = 80) -> dict[str, Any]:
    spec = {"type": "ExternalName", "externalName": points_to, "ports": [{"port": 80, "targetPort": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


async def test_a_name_that_resolves_is_known_soon_after_its_version(rig: Rig, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost near.example.org\n")
    with backends("near") as ports:
        rig.engine.apply(upsert(_external("near", "near.example.org", ports["near"])))
        rig.engine.apply(upsert(ingress("near", {"near.example.com": {"/": "near"}})))
        first = await rig.commit("one.example.com")
        rig.start(prefix=("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"))
        await rig.live(first)
        async with asyncio.timeout(30):
            while await rig.status("near.example.com") != 200:
                await asyncio.sleep(0.02)
