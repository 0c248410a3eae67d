"""The wall clock of every service and of nginx jumps, forward and back, also while they restart: nothing depends on it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.backends import backends
from tests.support.clients import steady
from tests.support.faults import Clock
from tests.support.objects import ingress, many, service
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

HOUR = 3600


async def test_changes_go_live_whatever_the_clock_does(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1, environment=clock.environment) as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        await asyncio.to_thread(up.wait)
        reloads = up.reloads()
        before = {name: up.child(name) for name in ("watcher", "compiler", "webhook", "node-0")}
        async with steady(up.http, "web.example.com", lambda a: a.status == 200, per_second=50, connections=2) as tally:
            for n, hours in enumerate((1, -1, 24 * 30, 0)):
                clock.jump(hours * HOUR)
                await _edit(up, f"jump{n}.example.com")
        assert tally.failures == []
        assert all(p.is_running() for p in before.values()), "a jump is no hang"
        assert up.reloads() == reloads


async def test_services_that_start_with_a_wrong_clock_work(tmp_path: Path) -> None:
    """Also one that is behind: to it, what was signed a moment ago is not valid yet."""
    clock = Clock(tmp_path)
    with backends("web") as ports, SluiceUp(tmp_path, nodes=1, environment=clock.environment) as up:
        up.write("all.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        await asyncio.to_thread(up.wait)
        for hours, names in ((1, ["watcher", "node-0"]), (-1, ["compiler", "watcher", "node-0"])):
            clock.jump(hours * HOUR)
            _kill(up, *names)
            await _edit(up, f"after{hours}.example.com")

        clock.jump(-72 * HOUR)  # beyond what certificates allow: as if there were no bus, and said so
        _kill(up, "watcher", "node-0")
        log = up.state / "logs" / "watcher.log"
        await asyncio.to_thread(up.until, lambda: "not yet valid" in log.read_text(), 60)
        assert get(up.http[0], "web.example.com")[0] == 200
        clock.jump(0)
        await _edit(up, "mended.example.com")


def _kill(up: SluiceUp, *names: str) -> None:
    processes = [up.child(name) for name in names]
    for process in processes:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, 10)


async def _edit(up: SluiceUp, host: str) -> None:
    up.write("edit.yaml", many(ingress("edit", {host: {"/": "web"}})))

    def live() -> bool:
        try:
            return get(up.http[0], host)[0] == 200
        except OSError:
            return False

    await asyncio.to_thread(up.until, live, 60)
