"""kill -9 of every kind of process at random, under load and edits: only requests on a killed nginx process may fail, and all ends well.

SLUICE_CHAOS_SECONDS sets how long (default 30; 180 is the full run), SLUICE_CHAOS_SEED which sequence.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.backends import backends
from tests.support.clients import Answer, Failure, steady
from tests.support.objects import ingress, many, service
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

SECONDS = float(os.environ.get("SLUICE_CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("SLUICE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SERVICES = ["watcher", "compiler", "webhook", "nats", "node-0", "node-1"]
EXCUSED_SECONDS = 8.0
"""After the kill of a master or a worker, on its node: connections that it had, or that its orphaned workers had until they were replaced
(which takes longer where the applier was killed as well)."""


def _victim(up: SluiceUp, choice: random.Random) -> tuple[psutil.Process, int | None]:
    """(process, node whose requests it may take with it)."""
    if choice.random() < 0.6:
        return up.child(choice.choice(SERVICES)), None
    node = choice.randrange(2)
    master = up.nginx(node)
    workers = master.children()
    return (master if choice.random() < 0.4 or not workers else choice.choice(workers)), node


async def test_random_kills(tmp_path: Path) -> None:
    choice = random.Random(SEED)
    print(f"seed {SEED}")
    with backends("web") as ports, SluiceUp(tmp_path) as up:
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        await asyncio.to_thread(up.wait)
        kills: list[tuple[float, int | None, str]] = []

        def right(answer: Answer) -> bool:
            return answer.status == 200 and answer.body.startswith(b"web ")

        async with steady(up.http, "web.example.com", right, per_second=100) as tally:
            end = time.monotonic() + SECONDS
            edit = 0
            while time.monotonic() < end:
                edit += 1
                up.write("edit.yaml", many(ingress("edit", {f"e{edit}.example.com": {"/": "web"}})))
                try:
                    victim, node = _victim(up, choice)
                    name = victim.name() if node is None else f"nginx of node-{node}"
                    victim.send_signal(signal.SIGKILL)
                    kills.append((time.monotonic(), node, name))
                except (psutil.Error, OSError, ValueError, AssertionError):
                    pass  # it is being restarted at this moment
                await asyncio.sleep(choice.uniform(0.3, 1.5))

        done = await asyncio.to_thread(up.run, "wait", "--timeout", "60")
        assert done.returncode == 0, done.stderr
        inexcusable = [f for f in tally.failures if not _excused(f, up, kills)]
        assert inexcusable == [], f"seed {SEED}, kills {kills}"
        assert tally.requests > SECONDS * 50
        status = await asyncio.to_thread(up.status)
        assert {(n["epoch"], n["number"]) for n in status["nodes"]} == {tuple(map(int, status["version"].split(".")))}
        for port in up.http:
            assert get(port, f"e{edit}.example.com")[0] == 200
        print(f"{len(kills)} kills, {tally.requests} requests, {len(tally.failures)} failed on killed nginx processes")


def _excused(failure: Failure, up: SluiceUp, kills: list[tuple[float, int | None, str]]) -> bool:
    """A connection that went with a killed nginx process. A wrong answer never is."""
    if failure.text[:1].isdigit():
        return False
    node = up.http.index(failure.port)
    return any(n == node and 0 <= failure.at - at <= EXCUSED_SECONDS for at, n, _ in kills)
