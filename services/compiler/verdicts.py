"""Verdicts in their bucket: one entry an object with problems, kept in step with what the compiler thinks."""

from __future__ import annotations

import msgspec

from services.shared.bus.port import Bus, BusError
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Verdict
from services.shared.contracts.subjects import VERDICTS_BUCKET, verdict_key
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)


def bucket_key(key: Key) -> str:
    """Ingresses under `<ns>.<name>`; other kinds with the kind in front."""
    place = verdict_key(key.namespace, key.name)
    return place if key.kind == "Ingress" else f"{key.kind.lower()}.{place}"


class Verdicts:
    """What has been published; only differences are."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._published: dict[str, bytes] = {}
        self._leftover: set[str] = set()
        """Entries of an earlier process that no verdict has confirmed yet."""
        self._waiting: dict[str, bytes | None] = {}

    async def start(self) -> None:
        self._published = await self._bus.entries(VERDICTS_BUCKET)
        self._leftover = set(self._published)

    async def publish(self, verdicts: dict[Key, Verdict | None]) -> None:
        """A verdict that cannot be stored now is kept for the next time: it never holds up a version."""
        for key, verdict in verdicts.items():
            self._waiting[bucket_key(key)] = msgspec.json.encode(verdict) if verdict is not None else None
        if self._leftover:
            for gone in self._leftover - {bucket_key(k) for k, v in verdicts.items() if v is not None}:
                self._waiting.setdefault(gone, None)
            self._leftover = set()
        for name in list(self._waiting):
            value = self._waiting[name]
            try:
                if value is None and name in self._published:
                    await self._bus.delete(VERDICTS_BUCKET, name)
                    del self._published[name]
                elif value is not None and self._published.get(name) != value:
                    await self._bus.put(VERDICTS_BUCKET, name, value)
                    self._published[name] = value
            except BusError as error:
                log.warning("a verdict could not be stored yet", key=name, error=error)
                return
            del self._waiting[name]
