"""Status and Events together, as the watcher knows them: it tells them what it sees, and lets them write while it leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from typing import Final

from services.shared.bus.port import Bus
from services.shared.contracts.problem import Problem
from services.shared.flags import Flags
from services.shared.kube.client import Api, KubeError
from services.shared.telemetry.lifecycle import until
from services.shared.telemetry.logs import get_logger
from services.watcher.changes import ObjectChanges
from services.watcher.options import WatcherOptions
from services.watcher.status.events import EventWriter
from services.watcher.status.news import News
from services.watcher.status.ours import OurIngresses
from services.watcher.status.published import Addresses
from services.watcher.status.writer import StatusWriter

log = get_logger(__name__)

AGAIN_SECONDS: Final = 5.0


class Reporting:
    """See the module. Each group of nodes has its own classes and addresses; Events are said of all of them together."""

    def __init__(self, api: Api, bus: Bus, options: WatcherOptions) -> None:
        further = options.groups
        self._ours = OurIngresses(options.flags, *further.values())
        self._events = EventWriter(api, self._ours, options.name)
        self._news = News(bus, self._ours, self._events.say)

        def status(flags: Flags, has: Callable[[str], bool]) -> tuple[OurIngresses, StatusWriter]:
            ours = OurIngresses(flags)
            return ours, StatusWriter(api, flags, ours, Addresses(api, bus, flags, options.election_namespace, has))

        self._statuses = [status(options.flags, lambda group: group not in further)]
        self._statuses += [status(flags, name.__eq__) for name, flags in further.items()]

    def note(self, changes: ObjectChanges) -> None:
        """Everything that is published, whether this watcher leads or not."""
        for key, obj in changes.items():
            self._ours.note(key, obj)
            for ours, status in self._statuses:
                for affected in ours.note(key, obj):
                    status.note(affected)

    def refused(self, problems: Collection[Problem]) -> None:
        """All objects that cannot be published now."""
        self._news.take_refused(problems)

    async def follow(self) -> None:
        """For ever, whether this watcher leads or not."""
        await _always("news", self._news.follow)

    async def run(self) -> None:
        """For ever; cancelled when leadership ends."""
        writing = (_always("status", status.run) for _, status in self._statuses)
        await until(asyncio.Event(), *writing, _always("events", self._events.run))

    async def clear(self) -> None:
        """The last watcher is shut down."""
        for _, status in self._statuses:
            with contextlib.suppress(KubeError):  # what cannot be taken away stays
                await status.clear()


async def _always(what: str, work: Callable[[], Coroutine[None, None, None]]) -> None:
    """An error here, whichever, is no reason to stop publishing, nor to report no more."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - see above
            log.error("could not report to the API server", what=what, error=error)
        await asyncio.sleep(AGAIN_SECONDS)
