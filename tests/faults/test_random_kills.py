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
from tests.support.clients import Answer, steady
from tests.support.objects import ingress, many, service
from tests.support.up import SluiceUp, get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]

SECONDS = float(os.environ.get("SLUICE_CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("SLUICE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SERVICES = ["watcher", "compiler", "webhook", "nats", "node-0", "node-1"]
CONNECTIONS = 8
"""Of the clients, to each node."""


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

        async with steady(up.http, "web.example.com", right, per_second=100, connections=CONNECTIONS) as tally:
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
        assert [f for f in tally.failures if f.text[:1].isdigit()] == [], f"wrong answers; seed {SEED}, kills {kills}"
        for node, port in enumerate(up.http):
            lost = [f for f in tally.failures if f.port == port]
            assert len(lost) <= _excused(node, kills), f"seed {SEED}, kills {kills}"
        assert tally.requests > SECONDS * 50
        status = await asyncio.to_thread(up.status)
        assert {(n["epoch"], n["number"]) for n in status["nodes"]} == {tuple(map(int, status["version"].split(".")))}
        for port in up.http:
            assert get(port, f"e{edit}.example.com")[0] == 200
        print(f"{len(kills)} kills, {tally.requests} requests, {len(tally.failures)} failed on killed nginx processes")


def _excused(node: int, kills: list[tuple[float, int | None, str]]) -> int:
    """How many requests may fail on a node: a killed worker takes the connections it had with it; those of the workers of a killed master
    are closed when its successor takes over, and a request that was on its way then is lost."""
    return 2 * CONNECTIONS * sum(1 for _, n, _ in kills if n == node)
