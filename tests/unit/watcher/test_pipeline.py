"""What a watcher that leads no more does with what it was publishing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from services.shared.bus.port import Message, Request
from services.shared.contracts.objects import Ingress, Key, Metadata
from services.shared.contracts.question import BarrierAnswer
from services.watcher.changes import Changes
from services.watcher.options import WatcherOptions
from services.watcher.pipeline import Pipeline
from services.watcher.questions import Questions
from tests.support.sealing import key_directory


class Source:
    name = "a list"
    complete = True
    problems = ()

    def __init__(self, count: int) -> None:
        names = [f"i{n}" for n in range(count)]
        self._changes = Changes(objects={Key("Ingress", "x", n): Ingress(metadata=Metadata(name=n, namespace="x")) for n in names})

    async def look(self, _: object = None) -> Changes:
        found, self._changes = self._changes, Changes()
        return found

    async def catch_up(self, seconds: float) -> str:
        return ""


class SlowBus:
    """Takes one batch each time it is told to."""

    def __init__(self) -> None:
        self.taken = 0
        self.waiting = asyncio.Event()
        self.take = asyncio.Event()
        self.take.set()

    async def ensure(self) -> None: ...

    async def history(self, stream: str, subject: str, *, after: int = 0, limit: int = 0) -> list[Message]:
        return []

    async def last_sequence(self, stream: str) -> int:
        return self.taken

    async def publish_many(self, messages: list[tuple[str, bytes, Mapping[str, str] | None]]) -> int:
        self.waiting.set()
        await self.take.wait()
        self.taken += len(messages)
        return self.taken


def pipeline(bus: SlowBus, source: Source, directory: Path, *, may: list[bool]) -> Pipeline:
    options = WatcherOptions(seal_keys=key_directory(directory))
    return Pipeline(bus, source, options, may_publish=lambda: may[0])  # type: ignore[arg-type]  # what it uses of them


async def test_standing_by_ends_what_is_being_published(tmp_path: Path) -> None:
    bus = SlowBus()
    made = pipeline(bus, Source(2_000), tmp_path, may=[True])
    bus.take.clear()
    running = asyncio.create_task(made.round(None))
    await bus.waiting.wait()
    made.stand_by()
    async with asyncio.timeout(10):
        await running
    bus.take.set()
    await made.round(None)
    assert bus.taken == 0

    made.lead()
    await made.round(None)
    assert bus.taken == 2_000 + 2  # the implicit IngressClass, a mark


async def test_who_may_not_publish_does_not(tmp_path: Path) -> None:
    bus, may = SlowBus(), [False]
    made = pipeline(bus, Source(1), tmp_path, may=may)
    await made.round(None, mark=True)
    assert bus.taken == 0
    assert not made.leading
    may[0] = True
    await made.round(None)
    assert bus.taken == 3


async def test_who_leads_no_more_says_so_instead_of_an_answer(tmp_path: Path) -> None:
    may = [True]
    made = pipeline(SlowBus(), Source(3), tmp_path, may=may)
    questions = Questions(made)

    async def again() -> bool:
        return msgspec.json.decode(await questions.barrier(Request(payload=b"{}")), type=BarrierAnswer).again

    assert not await again()
    may[0] = False
    assert await again()
    await questions.close()
