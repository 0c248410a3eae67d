"""Status and Events together, as the watcher knows them: it tells them what it sees, and lets them write while it leads."""

from __future__ import annotations

import asyncio

from services.shared.telemetry.lifecycle import until
from services.watcher.changes import ObjectChanges
from services.watcher.status.events import EventWriter
from services.watcher.status.writer import StatusWriter


class Reporting:
    """See the module."""

    def __init__(self, status: StatusWriter, events: EventWriter) -> None:
        self._status = status
        self._events = events

    def note(self, changes: ObjectChanges) -> None:
        """Everything that is published, whether this watcher leads or not."""
        for key, obj in changes.items():
            self._status.note(key, obj)
            if key.kind == "Ingress":
                self._events.note(key.namespace, key.name, obj.metadata.uid if obj is not None else "")

    async def run(self) -> None:
        """For ever; cancelled when leadership ends."""
        await until(asyncio.Event(), self._status.run(), self._events.run())

    async def clear(self) -> None:
        """The last watcher is shut down."""
        await self._status.clear()
