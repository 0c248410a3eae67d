"""nginx's own processes die, stop or crash again and again; upstreams are dead; the disk is full or slow: the node goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.clients import steady
from tests.support.faults import disk_of, strace
from tests.support.node import NEW_POLICY, Rig, one_node, running
from tests.support.up import get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with one_node(tmp_path) as made:
        yield made


async def _until(seconds: float, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


async def test_workers_killed_every_half_second_cost_only_what_they_had_in_hand(rig: Rig) -> None:
    await running(rig)
    kills = 8
    async with steady([rig.http], "one.example.com", lambda a: a.status == 200, per_second=100, connections=4) as tally:
        for _ in range(kills):
            await asyncio.sleep(0.5)
            rig.workers()[0].kill()
    # A kept-alive connection dies with its worker; nothing else fails, and nothing is answered wrongly.
    assert len(tally.failures) <= kills * 4
    assert all("Error" in f.text or "error" in f.text for f in tally.failures), tally.failures
    second = await rig.commit("two.example.com")
    await rig.live(second)


async def test_a_stopped_worker_is_replaced_while_others_serve(rig: Rig) -> None:
    await running(rig)
    before = rig.workers()
    before[0].send_signal(signal.SIGSTOP)
    await _until(40, lambda: before[0] not in rig.workers() and len(rig.workers()) == len(before))
    assert {await rig.status("one.example.com") for _ in range(10)} == {200}
    report = await rig.report(lambda r: "hung" in r.last_error)
    assert "1 of" in report.last_error


async def test_a_stopped_master_is_replaced(rig: Rig) -> None:
    await running(rig)
    master = rig.nginx
    master.send_signal(signal.SIGSTOP)
    await _until(40, lambda: not master.is_running() or master.status() == psutil.STATUS_ZOMBIE)
    second = await rig.commit("two.example.com", NEW_POLICY)
    await rig.live(second)
    assert await rig.status("two.example.com") == 200


async def test_a_crash_loop_after_a_new_policy_is_undone_and_reported(rig: Rig) -> None:
    await running(rig)
    rig.add("second", [1], "two.example.com", NEW_POLICY)
    second = await rig.commit("one.example.com")
    await rig.report(lambda r: r.number == second.number and not r.deferred_count)
    assert await rig.status("two.example.com") == 502

    async def crash() -> None:
        """What a memory error in the new configuration looks like from outside."""
        while True:
            for worker in rig.workers():
                with contextlib.suppress(psutil.Error):
                    worker.send_signal(signal.SIGSEGV)
            await asyncio.sleep(0.3)

    await asyncio.sleep(2.5)  # the old workers have drained: what ends now did not end because it was told to
    crashing = asyncio.create_task(crash())
    try:
        report = await rig.report(lambda r: bool(r.refused))
    finally:
        crashing.cancel()
    assert "crashed more than 3 times" in next(iter(report.refused.values()))
    assert report.deferred_count == 1
    await _until(20, lambda: get(rig.http, "one.example.com")[0] == 200)
    assert await rig.status("two.example.com") == 404, "it had no form before"


async def test_dead_and_slow_upstreams_touch_only_their_own_route(tmp_path: Path) -> None:
    async with one_node(tmp_path) as rig:
        await running(rig)
        with contextlib.ExitStack() as stack:
            silent = stack.enter_context(_silent())
            rig.add("dead", [1], "dead.example.com", {})
            rig.add("slow", [silent], "slow.example.com", {"proxy-read-timeout": "1"})
            manifest = await rig.commit("one.example.com")
            await rig.live(manifest)
            slow = [asyncio.create_task(rig.status("slow.example.com")) for _ in range(20)]
            assert await rig.status("dead.example.com") == 502
            began = time.monotonic()
            assert {await rig.status("one.example.com") for _ in range(20)} == {200}
            assert time.monotonic() - began < 10
            assert set(await asyncio.gather(*slow)) == {504}


@contextlib.contextmanager
def _silent() -> Iterator[int]:
    """A port that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        port: int = server.getsockname()[1]
        yield port


# --- the disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """For the node's directory."""
    with disk_of("100m") as directory:
        yield directory


async def test_a_full_disk_refuses_updates_before_it_touches_anything_and_recovers(tmp_path: Path, small_disk: Path) -> None:
    async with one_node(tmp_path, node_directory=small_disk / "node") as rig:
        first = await running(rig)
        filler = small_disk / "filler"
        free = shutil.disk_usage(small_disk).free
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (1 << 20))
        second = await rig.commit("two.example.com", NEW_POLICY)
        report = await rig.report(lambda r: "no space" in r.last_error)
        assert report.number == first.number
        assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (200, 404)
        filler.unlink()
        await rig.live(second)
        assert await rig.status("two.example.com") == 200


async def test_a_slow_disk_makes_changes_slower_and_nothing_else(rig: Rig) -> None:
    await running(rig)
    slow = ("-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=400000")
    with strace(rig.pid, *slow):
        async with steady([rig.http], "one.example.com", lambda a: a.status in (200, 404), per_second=50, connections=2) as tally:
            second = await rig.commit("two.example.com")
            await rig.live(second)
            third = await rig.commit("three.example.com", NEW_POLICY)
            await rig.live(third)
        assert await rig.status("three.example.com") == 200
        assert [f for f in tally.failures if "Incomplete" not in f.text] == []
