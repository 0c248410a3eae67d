"""The watcher at work: rounds where events hint, periodic verification, answers, and a report of how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from services.shared.bus.port import Bus, BusError, BusUnavailable, Message, Reset
from services.shared.contracts import subjects
from services.shared.contracts.delta import decode_sync_mark
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.report import WatcherReport
from services.shared.telemetry.health import Samples
from services.shared.telemetry.lifecycle import until
from services.shared.telemetry.logs import get_logger
from services.watcher.options import WatcherOptions
from services.watcher.pipeline import Pipeline
from services.watcher.questions import Questions
from services.watcher.sources.port import Hint, Source

if TYPE_CHECKING:  # a directory needs no Kubernetes client, which takes long to import
    from services.watcher.status.reporting import Reporting

log = get_logger(__name__)

PROBLEMS_REPORTED: Final = 100
RETRY_SECONDS: Final = (0.05, 2.0)
"""First and longest wait after the bus refused."""
MARKS_MISSED: Final = 3
"""A watcher that stands by takes over when it has missed so many periodic marks."""
CLEAR_SECONDS: Final = 5.0
"""For taking addresses away at the end."""
REPORT_PAUSE_SECONDS: Final = 0.2
"""At least so much between two reports."""

Told = Callable[[], Coroutine[None, None, None]]


class Election(Protocol):
    """Who of several leads."""

    @property
    def leading(self) -> bool:
        """At this moment."""
        ...

    def run(self, won: Told, lost: Told) -> Coroutine[None, None, None]:
        """For ever. `won` is run when leadership begins and cancelled when it ends; then `lost` is."""
        ...


class Watcher:
    """See the module."""

    def __init__(
        self, bus: Bus, source: Source, options: WatcherOptions, election: Election | None = None, reporting: Reporting | None = None
    ) -> None:
        """`election`: who of several leads; None: the later one does, and the other takes over when it is silent.

        `reporting`: runs while leading.
        """
        self._reporting = reporting
        self._writing: asyncio.Task[None] | None = None
        self._bus = bus
        self._source = source
        self._options = options
        self._election = election
        seen, refused = (reporting.note, reporting.refused) if reporting is not None else (None, None)
        self._pipeline = Pipeline(bus, source, options, seen, self._may_publish, refused)
        if election is not None:
            self._pipeline.stand_by()
        self._questions = Questions(self._pipeline)
        self._hinted: set[str] = set()
        self._everything = False
        self._hinted_at = 0.0
        self._heard_at = 0.0  # monotonic: when a watcher of a later epoch was heard last
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._wake = asyncio.Event()
        self._report_now = asyncio.Event()
        self._synced = False
        """Whether that has been said."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        try:
            # The watch first: nothing is missed between it and the first look.
            following = (self._reporting.follow(),) if self._reporting is not None else ()
            await until(stop, self._collect_hints(stop), self._work(), self._report(), *following)
        finally:
            await self._end_reporting()
            await self._questions.close()
            await self._stop_serving()

    # --- back to the API

    async def _end_reporting(self) -> None:
        await self._stop_writing()
        if self._reporting is None or not self._pipeline.leading:
            return
        with contextlib.suppress(BusError, TimeoutError):
            async with asyncio.timeout(CLEAR_SECONDS):
                others = (await self._bus.entries(subjects.WATCHERS_BUCKET)).keys() - {self._options.name}
                if not others:
                    await self._reporting.clear()

    async def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
            self._writing = None

    async def _work(self) -> None:
        await self._retrying(self._pipeline.begin)
        await self._retrying(self._first_round)
        if not self._pipeline.synced:
            log.info("waiting for the source", epoch=self._pipeline.epoch)
        if self._pipeline.leading:
            await self._retrying(self._serve)
        election = (self._election.run(self._won, self._lost),) if self._election is not None else ()
        await until(asyncio.Event(), self._rounds(), self._follow_marks(), self._verify(), *election)

    def _may_publish(self) -> bool:
        return self._election is None or self._election.leading

    async def _won(self) -> None:
        async with self._pipeline.lock:
            self._pipeline.lead()
        if self._reporting is not None:
            self._writing = asyncio.create_task(self._reporting.run())
        await self._retrying(self._first_round)
        await self._retrying(self._serve)

    async def _lost(self) -> None:
        self._pipeline.stand_by()
        self._synced = False
        await self._stop_writing()
        await self._stop_serving()

    async def _serve(self) -> None:
        if not self._stops:
            self._stops.append(await self._bus.serve(subjects.ASK_WATCHER_BARRIER, self._questions.barrier))
            self._stops.append(await self._bus.serve(subjects.ASK_WATCHER_RESYNC, self._questions.resync))

    async def _stop_serving(self) -> None:
        stops, self._stops = self._stops, []
        for stop_serving in stops:
            with contextlib.suppress(BusError):
                await stop_serving()

    async def _first_round(self) -> None:
        async with self._pipeline.lock:
            await self._pipeline.round(None, mark=True)
        self._say_whether_synced()
        self._report_now.set()

    def _say_whether_synced(self) -> None:
        """Once for each time that this watcher leads."""
        if self._pipeline.synced and not self._synced:
            self._synced = True
            log.info("synced", epoch=self._pipeline.epoch, **self._pipeline.counts)

    async def _retrying(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Until the bus takes it."""
        delay = RETRY_SECONDS[0]
        while True:
            try:
                await attempt()
                return
            except BusUnavailable as error:
                log.warning("the bus is away, will try again", error=error)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(delay * 2, RETRY_SECONDS[1])

    # --- rounds

    async def _collect_hints(self, stop: asyncio.Event) -> None:
        async for hint in self._source.hints(stop):
            self._hint(hint)

    def _hint(self, hint: Hint) -> None:
        self._hinted_at = self._hinted_at or time.time()
        self._hinted |= hint.paths
        self._everything |= hint.everything
        self._wake.set()

    async def _rounds(self) -> None:
        """A round for what was hinted, and again while something is in the middle of a change."""
        pause = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause or None):
                    await self._wake.wait()
            pause = 0.0

            async def attempt() -> None:
                nonlocal pause
                async with self._pipeline.lock:
                    pause = await self._hinted_round()

            await self._retrying(attempt)

    async def _hinted_round(self) -> float:
        observed_at = self._hinted_at
        paths = None if self._everything else self._hinted
        self._wake.clear()
        self._hinted, self._everything = set(), False
        again = await self._pipeline.round(paths, observed_at=observed_at)
        self._say_whether_synced()
        if not again and not self._wake.is_set():
            self._hinted_at = 0.0
        self._report_now.set()
        return again

    async def _verify(self) -> None:
        """Anti-entropy: events may be lost, links may lead out of the directory, the stream may have lost what it acknowledged."""
        while True:
            await asyncio.sleep(self._options.verify_seconds * random.uniform(0.9, 1.1))  # noqa: S311 - jitter
            if (
                self._election is None
                and not self._pipeline.leading
                and time.monotonic() - self._heard_at > MARKS_MISSED * self._options.verify_seconds
            ):
                await self._take_over()
            with contextlib.suppress(BusUnavailable):
                async with self._pipeline.lock:
                    await self._pipeline.round(None, mark=True)

    async def _follow_marks(self) -> None:
        """Notice at once when the stream was lost or put back, or when a watcher of a later epoch writes to it."""
        async for item in self._bus.follow(subjects.CLUSTER_STREAM, subjects.SYNC_SUBJECT, last_only=True):
            if isinstance(item, Reset):
                log.warning("the stream was reset, publishing what it lacks", reason=item.reason)
                self._pipeline.distrust()
                self._wake.set()
            elif isinstance(item, Message) and (epoch := _epoch(item.payload)) > self._pipeline.epoch:
                self._heard_at = time.monotonic()
                if self._pipeline.leading and self._election is None:
                    log.warning("another watcher took over, standing by", epoch=epoch, ours=self._pipeline.epoch)
                    self._pipeline.stand_by()
                    await self._stop_serving()

    async def _take_over(self) -> None:
        log.warning("the other watcher is silent, taking over")
        self._pipeline.lead()
        with contextlib.suppress(BusUnavailable):
            await self._serve()

    # --- reports

    async def _report(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(subjects.HEARTBEAT_SECONDS):
                    await self._report_now.wait()
            self._report_now.clear()
            with contextlib.suppress(BusError):
                await self._bus.put(subjects.WATCHERS_BUCKET, self._options.name, msgspec.json.encode(self._state()))
            await asyncio.sleep(REPORT_PAUSE_SECONDS)

    def unready(self) -> str:
        """Why it cannot do its work: one that stands by can, as soon as it must."""
        return "" if self._source.complete else "the source has not been read once"

    def samples(self) -> Samples:
        """For metrics."""
        pipeline = self._pipeline
        return {
            "leading": pipeline.leading,
            "synced": pipeline.synced,
            "epoch": pipeline.epoch,
            "objects": pipeline.counts,
            "problems": len(pipeline.problems()),
        }

    def _state(self) -> WatcherReport:
        return WatcherReport(
            watcher=self._options.name,
            at=time.time(),
            source=self._source.name,
            epoch=self._pipeline.epoch,
            synced=self._pipeline.synced,
            objects=self._pipeline.counts,
            problems=_at_most(self._pipeline.problems()),
        )


def _at_most(problems: list[Problem]) -> tuple[Problem, ...]:
    """Errors first, and a line that says how many more there are."""
    ordered = sorted(problems, key=lambda problem: problem.severity != "error")
    if len(ordered) <= PROBLEMS_REPORTED:
        return tuple(ordered)
    more = Problem(reason=Reason.INVALID_OBJECT, field="...", message=f"and {len(ordered) - PROBLEMS_REPORTED} more problems")
    return (*ordered[:PROBLEMS_REPORTED], more)


def _epoch(mark: bytes) -> int:
    try:
        return decode_sync_mark(mark).epoch
    except msgspec.MsgspecError:
        return 0
