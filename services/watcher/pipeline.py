"""One round: look at the source, select, publish. Everything that touches the source or the publisher goes through here, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from services.shared.bus.port import Bus
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem
from services.shared.sealing.keyfile import KeyFile
from services.shared.telemetry.logs import get_logger
from services.watcher.changes import ObjectChanges
from services.watcher.options import WatcherOptions
from services.watcher.publish import Publisher, StreamWentBack
from services.watcher.selection import Selection
from services.watcher.sources.port import Source
from services.watcher.tracing import traces

log = get_logger(__name__)


class Pipeline:
    """See the module. Hold `lock` around `round`s that belong together."""

    def __init__(
        self,
        bus: Bus,
        source: Source,
        options: WatcherOptions,
        seen: Callable[[ObjectChanges], None] | None = None,
        may_publish: Callable[[], bool] = lambda: True,
        refused: Callable[[Collection[Problem]], None] | None = None,
    ) -> None:
        """`refused` is told of all objects that cannot be published, after each time that it was tried.

        `seen` is told of everything that is published, whether this watcher publishes it or another.

        `may_publish` is asked before each flush: a process that was stopped for a while is told late that it leads no more.
        """
        self._seen = seen
        self._may_publish = may_publish
        self._refused = refused
        self._flushing: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()
        self._bus = bus
        self._source = source
        self._selection = Selection(options.flags, *options.groups.values())
        self._keys = KeyFile(options.seal_keys)
        self._publisher = Publisher(bus, self._keys.ring, max_delta_bytes=options.max_delta_bytes)
        self._stale = False
        self._leading = True

    async def begin(self) -> None:
        """Learn what the stream holds, before the first round. Raises BusUnavailable."""
        await self._bus.ensure()
        self._source.adopt(await self._publisher.read())

    def distrust(self) -> None:
        """The next round reads the stream again before it publishes."""
        self._stale = True

    async def verify(self) -> None:
        """Compare with what the stream really holds; the next round publishes what it lacks. Not under the lock. Raises BusUnavailable."""
        await self._publisher.verify(self.lock)

    def stand_by(self) -> None:
        """Publish nothing any more, not even the rest of what is being published: another watcher does."""
        self._leading = False
        if self._flushing is not None:
            self._flushing.cancel()

    def lead(self) -> None:
        """Publish again, under an epoch of its own, what the stream then lacks."""
        self._leading = True
        self._stale = True

    async def round(self, paths: Collection[str] | None, *, mark: bool = False, observed_at: float = 0.0) -> float:
        """Look at `paths` (None: at everything), publish what differs, and the mark (`mark`: even if nothing does).

        Returns after how many seconds to look again at what was in the middle of a change; 0: nothing was. `observed_at` is when an event
        told of the change, unix seconds. Raises BusUnavailable: what was found is kept and goes with the next round.
        """
        self._keys.refresh()
        if self._stale and self.leading:
            await self._bus.ensure()
            await self._publisher.read()
            self._stale = False
        started = observed_at or time.time()
        changes = await self._source.look(paths)
        selected = self._selection.apply(changes.objects)
        if self._seen is not None:
            self._seen(selected)
        if selected:
            self._publisher.want(selected, observed_at=started, traces=traces(selected, started))
        # Before the source has been listed once, what is not there is only not known.
        if self._source.complete and self.leading:
            await self._flush(mark=mark)
        return changes.again_after_seconds

    async def _flush(self, *, mark: bool) -> None:
        """As a task of its own, so that `stand_by` can end it. What was not acknowledged is compared again."""
        task = self._flushing = asyncio.create_task(self._flush_now(mark=mark))
        try:
            await asyncio.wait([task])
        finally:
            self._flushing = None
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _flush_now(self, *, mark: bool) -> None:
        try:
            await self._publisher.flush(mark=mark)
        except StreamWentBack:
            log.warning("the stream went back, publishing what it lacks")
            await self._bus.ensure()
            await self._publisher.read()
            await self._publisher.flush(mark=True)
        if self._refused is not None:
            self._refused(self._publisher.problems)

    async def catch_up(self, seconds: float) -> str:
        """Empty once the next round publishes all that the source has now; else why it cannot. Not under the lock."""
        return await self._source.catch_up(seconds)

    async def covering_sequence(self) -> int:
        """The sequence at or before which everything published is, checked against the stream. Raises BusUnavailable."""
        if await self._bus.last_sequence(subjects.CLUSTER_STREAM) < self._publisher.sequence:
            await self._publisher.read()
            await self._flush(mark=True)
        return self._publisher.sequence

    # --- how it goes

    @property
    def synced(self) -> bool:
        return self.leading and self._source.complete and self._publisher.settled

    @property
    def leading(self) -> bool:
        """Whether this watcher is the one that publishes."""
        return self._leading and self._may_publish()

    @property
    def epoch(self) -> int:
        return self._publisher.epoch

    @property
    def counts(self) -> dict[str, int]:
        """Objects published, by kind."""
        return self._publisher.counts

    def problems(self) -> list[Problem]:
        """Everything wrong now: with files, with objects, with their size."""
        return [*self._source.problems, *self._publisher.problems]
