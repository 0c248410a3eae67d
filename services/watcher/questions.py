"""The watcher's answers: barrier (what the source holds now is in the stream) and resync (the stream is compared with it again)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import msgspec

from services.shared.bus.port import Request
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.question import BarrierAnswer
from services.watcher.pipeline import Pipeline

SETTLE_SECONDS: Final = 1.5
"""How long an answer waits for files in the middle of a change."""
CATCH_UP_SECONDS: Final = 15.0
PROBLEMS_ANSWERED: Final = 100

T = TypeVar("T")


class Shared(Generic[T]):
    """Runs `work` such that every caller gets the result of a run that began after it called. Callers that wait share one run."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._next is None:
            self._next = asyncio.ensure_future(self._run(self._running))
        return await asyncio.shield(self._next)

    async def _run(self, after: asyncio.Task[T] | None) -> T:
        if after is not None:
            await asyncio.wait([after])
        self._running, self._next = self._next, None
        return await self._work()

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Questions:
    """Handlers for the bus."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._barriers = Shared(self._barrier)
        self._resyncs = Shared(self._resync)

    async def barrier(self, _: Request) -> bytes:
        """BarrierQuestion -> BarrierAnswer."""
        return msgspec.json.encode(await self._barriers())

    async def resync(self, _: Request) -> bytes:
        """Someone's picture does not agree with the mark: compare everything again. -> BarrierAnswer."""
        return msgspec.json.encode(await self._resyncs())

    async def close(self) -> None:
        await self._barriers.close()
        await self._resyncs.close()

    async def _resync(self) -> BarrierAnswer:
        await self._pipeline.verify()
        return await self._barrier(mark=True)

    async def _barrier(self, *, mark: bool = False) -> BarrierAnswer:
        behind = await self._pipeline.catch_up(CATCH_UP_SECONDS)
        deadline = time.monotonic() + SETTLE_SECONDS
        async with self._pipeline.lock:
            again = await self._pipeline.round(None, mark=mark)
            while again and time.monotonic() < deadline:
                await asyncio.sleep(again)
                again = await self._pipeline.round(())
            sequence = await self._pipeline.covering_sequence()
            errors = [p for p in self._pipeline.problems() if p.severity == "error"]
        again = not self._pipeline.leading
        if again:
            behind = "another watcher leads now; ask again"
        if behind:
            errors.insert(0, Problem(reason=Reason.SOURCE_UNREACHABLE, field="source", message=behind))
        # What is not about one object alone counts for all: it comes first.
        errors.sort(key=lambda p: p.of_one_object)
        return BarrierAnswer(sequence=sequence, problems=tuple(errors[:PROBLEMS_ANSWERED]), again=again)
