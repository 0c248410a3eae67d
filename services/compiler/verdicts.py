"""Verdicts in their bucket: one entry an object with problems, kept in step with what the compiler thinks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec

from services.shared.bus.port import Bus, BusError
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Verdict
from services.shared.contracts.subjects import VERDICTS_BUCKET, token, verdict_key
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

AT_ONCE: Final = 100
"""Entries stored at the same time."""


class Verdicts:
    """What has been published; only differences are."""

    def __init__(self, bus: Bus, group: str) -> None:
        self._bus = bus
        self._group = group
        self._published: dict[str, bytes] = {}
        self._waiting: dict[str, bytes | None] = {}
        self._trusted = False
        """Whether `_published` is what the bucket holds, and all verdicts so far came from one engine."""

    async def refused(self) -> set[tuple[str, str]]:
        """(namespace, name) of the Ingresses that the bucket says are not in effect as they stand. Raises what the bus raises."""
        found = set()
        for value in (await self._stored()).values():
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                verdict = msgspec.json.decode(value, type=Verdict)
                if verdict.kind == "Ingress" and not verdict.accepted:
                    found.add((verdict.namespace, verdict.name))
        return found

    def distrust(self) -> None:
        """The bucket may be lost, and the next verdicts noted are those of another engine: all there are."""
        self._trusted = False
        self._waiting.clear()

    def note(self, verdicts: dict[Key, Verdict | None]) -> None:
        """What has changed; `publish` stores it."""
        for key, verdict in verdicts.items():
            self._waiting[verdict_key(self._group, key.kind, key.namespace, key.name)] = (
                msgspec.json.encode(verdict) if verdict is not None else None
            )

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
            self._published = await self._stored()
        except BusError:
            self._trusted = False
            raise
        if self._trusted:
            for leftover in self._published:
                self._waiting.setdefault(leftover, None)  # of an earlier process or engine
        return self._trusted

    async def _stored(self) -> dict[str, bytes]:
        """This group's."""
        mine = f"{token(self._group)}."
        return {k: v for k, v in (await self._bus.entries(VERDICTS_BUCKET)).items() if k.startswith(mine)}

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
