"""Verdicts in their bucket: one entry an object with problems, kept in step with what the compiler thinks."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from services.shared.bus.port import Bus, BusError
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Verdict
from services.shared.contracts.subjects import VERDICTS_BUCKET, verdict_key
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

AT_ONCE: Final = 100
"""Entries stored at the same time."""


def bucket_key(key: Key) -> str:
    """Ingresses under `<ns>.<name>`; other kinds with the kind in front."""
    place = verdict_key(key.namespace, key.name)
    return place if key.kind == "Ingress" else f"{key.kind.lower()}.{place}"


class Verdicts:
    """What has been published; only differences are."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._published: dict[str, bytes] = {}
        self._waiting: dict[str, bytes | None] = {}
        self._trusted = False
        """Whether `_published` is what the bucket holds, and all verdicts so far came from one engine."""

    def distrust(self) -> None:
        """The bucket may be lost, and the next verdicts noted are those of another engine: all there are."""
        self._trusted = False
        self._waiting.clear()

    def note(self, verdicts: dict[Key, Verdict | None]) -> None:
        """What has changed; `publish` stores it."""
        for key, verdict in verdicts.items():
            self._waiting[bucket_key(key)] = msgspec.json.encode(verdict) if verdict is not None else None

    async def publish(self) -> None:
        """A verdict that cannot be stored now is kept for the next time: it never holds up a version."""
        try:
            if not self._trusted and not await self._read():
                return
            names = list(self._waiting)
            for at in range(0, len(names), AT_ONCE):
                await asyncio.gather(*(self._store(name) for name in names[at : at + AT_ONCE]))
        except BusError as error:
            log.warning("verdicts could not be stored yet", waiting=len(self._waiting), error=error)

    async def _read(self) -> bool:
        """Learn what the bucket holds; False: that was put in doubt again meanwhile."""
        self._trusted = True
        try:
            self._published = await self._bus.entries(VERDICTS_BUCKET)
        except BusError:
            self._trusted = False
            raise
        if self._trusted:
            for leftover in self._published:
                self._waiting.setdefault(leftover, None)  # of an earlier process or engine
        return self._trusted

    async def _store(self, name: str) -> None:
        if name not in self._waiting:
            return
        value = self._waiting[name]
        if value is None and name in self._published:
            await self._bus.delete(VERDICTS_BUCKET, name)
            del self._published[name]
        elif value is not None and self._published.get(name) != value:
            await self._bus.put(VERDICTS_BUCKET, name, value)
            self._published[name] = value
        if self._waiting.get(name) == value:
            del self._waiting[name]
