"""A watcher between an API server of ours and a real nats-server. Whatever happened: what is published is what the API server holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts import subjects
from services.shared.contracts.delta import decode_delta
from services.shared.contracts.objects import AnyObject, Key
from services.shared.contracts.question import BarrierAnswer
from services.shared.flags import Flags
from services.watcher.__main__ import WatcherOptions, serve
from services.watcher.sources.kubernetes import reflector
from tests.support.fake_kube import FakeKube
from tests.support.nats import NatsServer
from tests.support.objects import PREFIX, ingress
from tests.support.sealing import key_directory

DEADLINE_SECONDS = 60
FLAGS = Flags(disable_leader_election=True)


class Cell:
    """The three, and what must be true of them."""

    def __init__(self, kube: FakeKube, nats: NatsServer, bus: JetStreamBus, directory: Path) -> None:
        self.kube = kube
        self.nats = nats
        self.bus = bus
        self._directory = directory
        self.deltas: list[tuple[str, Key]] = []
        """Every upsert and delete ever published, in order."""

    @contextlib.asynccontextmanager
    async def watcher(self, name: str = "watcher", flags: Flags = FLAGS) -> AsyncIterator[asyncio.Task[None]]:
        stop = asyncio.Event()
        options = WatcherOptions(
            kubeconfig=self.kube.kubeconfig(self._directory), name=name, flags=flags, seal_keys=key_directory(self._directory / "seal")
        )
        async with JetStreamBus(self.nats.url, name=name) as bus:
            task = asyncio.create_task(serve(bus, options, stop))
            try:
                yield task
            finally:
                stop.set()
                await asyncio.gather(task, return_exceptions=True)

    async def barrier(self) -> BarrierAnswer:
        """What `sluice wait` asks first, until there is nothing wrong."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                with contextlib.suppress(BusError):
                    answer = msgspec.json.decode(
                        await self.bus.request(subjects.ASK_WATCHER_BARRIER, b"{}", timeout=20), type=BarrierAnswer
                    )
                    if not answer.problems:
                        return answer
                await asyncio.sleep(0.02)

    async def published(self) -> dict[Key, AnyObject]:
        out = {}
        for message in await self.bus.history(subjects.CLUSTER_STREAM, "cluster.v1.>"):
            if message.subject != subjects.SYNC_SUBJECT:
                delta = decode_delta(message.payload)
                if delta.object is not None and delta.key != Key("IngressClass", "", "nginx"):
                    out[delta.key] = delta.object
        return out

    async def published_is_what_there_is(self) -> None:
        await self.barrier()
        assert {k: content(o) for k, o in (await self.published()).items()} == self.truth()

    async def published_becomes_what_there_is(self) -> None:
        """For servers that send events in any order: a barrier believes an event that it is the newest of those before it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                await self.barrier()
                if {k: content(o) for k, o in (await self.published()).items()} == self.truth():
                    return
                await asyncio.sleep(0.02)

    def truth(self) -> dict[Key, tuple[str, str]]:
        return {
            key: (obj["metadata"]["uid"], obj["metadata"].get("annotations", {}).get(PREFIX + "x", ""))
            for key, obj in self.kube.objects.items()
            if key.kind != "Lease"
        }

    async def until(self, key: Key, x: str | None) -> None:
        """Until the stream holds that object with that annotation; None: does not hold it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                obj = (await self.published()).get(key)
                if (content(obj)[1] if obj is not None else None) == x:
                    return
                await asyncio.sleep(0.02)

    async def follow(self) -> None:
        """Write down every delta, until cancelled."""
        async for item in self.bus.follow(subjects.CLUSTER_STREAM, "cluster.v1.>"):
            payload = getattr(item, "payload", None)
            if payload is not None and item.subject != subjects.SYNC_SUBJECT:  # type: ignore[union-attr]  # a message
                delta = decode_delta(payload)
                self.deltas.append((delta.op, delta.key))


def content(obj: AnyObject) -> tuple[str, str]:
    return obj.metadata.uid, obj.metadata.annotations.get(PREFIX + "x", "")


def an_ingress(name: str, x: str = "", **more: str) -> dict[str, Any]:
    return ingress(name, {f"{name}.example.com": {"/": "web"}}, annotations={"x": x, **more} if x or more else {})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries soon, short watches: the same code at another pace."""
    monkeypatch.setattr(reflector, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(reflector, "LONGEST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(reflector, "SHORT_SECONDS", 0.0)


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    async with FakeKube() as kube, NatsServer(tmp_path / "nats") as nats, JetStreamBus(nats.url, name="test") as bus:
        await bus.ensure()
        made = Cell(kube, nats, bus, tmp_path)
        following = asyncio.create_task(made.follow())
        yield made
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
