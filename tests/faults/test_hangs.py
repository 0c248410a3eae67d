"""Processes of a whole product that hang or are cut off from the bus: they are replaced, traffic goes on, no change is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.backends import backends
from tests.support.clients import steady
from tests.support.faults import Proxy, disk_of, strace
from tests.support.node import one_node, running
from tests.support.objects import ingress, many, service
from tests.support.reviews import answer, review
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

SERVICES = ["nats", "watcher", "compiler", "webhook", "node-0"]


async def test_services_that_hang_are_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=2) as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        await asyncio.to_thread(up.wait)
        before = {name: up.child(name) for name in SERVICES}
        async with steady(up.http, "web.example.com", lambda a: a.status == 200, per_second=50, connections=2) as tally:
            for process in before.values():
                process.send_signal(signal.SIGSTOP)
            up.write("more.yaml", many(ingress("more", {"more.example.com": {"/": "web"}})))
            await asyncio.to_thread(up.until, lambda: not any(p.is_running() for p in before.values()), 60)
            await asyncio.to_thread(up.run, "wait", "--timeout", "60", timeout=90)
            await asyncio.to_thread(up.wait)
        assert tally.failures == []
        assert {get(port, "more.example.com")[0] for port in up.http} == {200}
        assert "after it hung" in up.log.read_text()


def test_nats_stores_again_once_a_full_disk_has_room(tmp_path: Path) -> None:
    """nats-server itself goes on refusing what it could not write once."""
    with disk_of("90m") as disk, backends("web") as ports, SluiceUp(tmp_path, nodes=1, state=disk / "state") as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.wait()
        filler = disk / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        up.write("more.yaml", many(ingress("more", {"more.example.com": {"/": "web"}})))
        time.sleep(3)
        assert (get(up.http[0], "web.example.com")[0], get(up.http[0], "more.example.com")[0]) == (200, 404)
        filler.unlink()
        up.until(lambda: get(up.http[0], "more.example.com")[0] == 200, 60)
        up.wait()


def test_a_slow_compiler_leaves_admission_its_local_checks(tmp_path: Path) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1) as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.wait()
        compiler = up.child("compiler")
        compiler.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        allowed = answer(up.webhook, review(ingress("new", {"new.example.com": {"/": "web"}})))
        hostile = ingress("evil", {"evil.example.com": {"/x; content_by_lua_block {os.execute()}": "web"}})
        denied = answer(up.webhook, review(hostile))
        assert time.monotonic() - began < 10, "within the API server's time, both of them"
        assert allowed["allowed"]
        assert allowed["warnings"]
        assert not denied["allowed"]
        compiler.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", ["webhook", "compiler"])
def test_no_tenant_text_is_ever_executed(tmp_path: Path, name: str) -> None:
    """Neither starts a process, nginx -t least of all, whatever it is asked."""
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1) as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        up.wait()
        seen = tmp_path / "strace"
        with strace(up.child(name).pid, "-e", "trace=execve,execveat,fork,vfork", output=seen):
            for annotations in ({"rewrite-target": "$(id)"}, {"configuration-snippet": "`id`;"}, {"auth-url": "http://x/;id"}):
                answer(up.webhook, review(ingress("evil", {"evil.example.com": {"/": "web"}}, annotations=annotations)))
                up.write("evil.yaml", many(ingress("evil", {"evil.example.com": {"/": "web"}}, annotations=annotations)))
                up.run("wait")
        assert seen.read_text() == ""


def test_a_watcher_that_dies_all_the_time_deletes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1) as up:
        hosts = [f"h{n}.example.com" for n in range(60)]
        up.write("web.yaml", many(*service("web", [ports["web"]])))
        for n, host in enumerate(hosts):
            up.write(f"h{n}.yaml", many(ingress(f"h{n}", {host: {"/": "web"}})))
        up.wait()
        for n in range(10):
            up.write(f"new{n}.yaml", many(ingress(f"new{n}", {f"new{n}.example.com": {"/": "web"}})))
            (up.manifests / f"h{n}.yaml").unlink()
            with contextlib.suppress(psutil.NoSuchProcess):
                up.child("watcher").kill()
            assert {get(up.http[0], h)[0] for h in hosts[10:20]} == {200}, "a half list deletes nothing"
        up.until(lambda: up.run("wait", "--timeout", "20").returncode == 0, 90)
        assert {get(up.http[0], f"new{n}.example.com")[0] for n in range(10)} == {200}
        assert {get(up.http[0], h)[0] for h in hosts[:10]} == {404}
        assert {get(up.http[0], h)[0] for h in hosts[10:]} == {200}


async def test_a_node_cut_off_from_the_bus_serves_and_makes_one_jump_afterwards(tmp_path: Path) -> None:
    async with one_node(tmp_path) as rig, Proxy(rig.server.port) as proxy:
        rig.nats_url = proxy.url
        await running(rig)
        proxy.cut()
        last = None
        for n in range(30):
            rig.add(f"new{n}", [1], f"new{n}.example.com", {})
            last = await rig.commit("one.example.com")
        assert last is not None
        assert await rig.status("one.example.com") == 200
        assert await rig.status("new29.example.com") == 404
        proxy.heal()
        await rig.live(last)
        assert await rig.status("new29.example.com") == 502
        applied = len(await rig.bus.history("APPLIED", "applied.v1.n"))
        assert applied <= 10, f"{applied} steps: not each version that was missed"
