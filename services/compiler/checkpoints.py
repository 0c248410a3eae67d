"""Checkpoints of one group's versions: written in the background now and then, and the blobs that nothing needs any more taken away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from services.shared.bus.port import Bus, BusError
from services.shared.contracts.subjects import VERSIONS_KEPT, VERSIONS_STORED
from services.shared.contracts.version import Checkpoint, Manifest
from services.shared.sealing.ring import KeyRing
from services.shared.telemetry.logs import get_logger
from services.shared.versions import read, write

log = get_logger(__name__)

EVERY: Final = 192
"""Versions between two checkpoints: some seconds while changes are many. Writing one costs what a hundred versions do ..."""
ENOUGH_BYTES: Final = 1024 * 1024
"""... unless their deltas are more than the rows themselves, and than this: then a follower reads less with another checkpoint."""
REACH: Final = VERSIONS_STORED - VERSIONS_KEPT
"""How far the oldest kept version may be from its checkpoint: the stream holds no deltas further back."""


class Checkpoints:
    """The newest checkpoint that versions may refer to."""

    def __init__(self, bus: Bus, group: str, ring: KeyRing) -> None:
        self._ring = ring
        self._bus = bus
        self._group = group
        self.newest: Checkpoint | None = None
        self.blobs = asyncio.Lock()
        """Held while a version's blobs are stored and its manifest published, and while one blob is deleted."""
        self._used: set[str] = set()
        """Blobs that a version may refer to since the last collection began."""
        self._unneeded: set[str] = set()
        """At the last collection. Only a blob that nothing needs twice is deleted: another compiler may be about to refer to it."""
        self._writing: asyncio.Task[None] | None = None
        self._delta_bytes = 0
        """Since the newest checkpoint."""

    def adopt(self, checkpoint: Checkpoint | None, *, same_history: bool) -> None:
        """Another compiler's version names this one. `same_history`: it follows the versions known here."""
        if not same_history:
            if self._writing is not None:
                self._writing.cancel()
            self.newest = None
        self._take(checkpoint)

    def _take(self, checkpoint: Checkpoint | None) -> None:
        # An older one is no use: a version in between may have been too large to travel inline.
        if checkpoint is not None and (self.newest is None or checkpoint.number > self.newest.number):
            self.newest = checkpoint
            self._delta_bytes = 0

    def carries(self, number: int) -> bool:
        """Whether version `number` may rest on the newest checkpoint."""
        return self.newest is not None and number - self.newest.number < REACH

    def use(self, digests: Iterable[str]) -> None:
        """A version that is about to be published refers to these. `blobs` is held."""
        self._used.update(digests)

    async def write_now(self, number: int, rows: Mapping[str, bytes], tables_digest: str) -> Checkpoint:
        """For a version that does not travel inline. `blobs` is held. Raises what the bus raises."""
        checkpoint = await write.write_checkpoint(self._bus, number, rows, tables_digest, self._ring)
        self.use(checkpoint.shards)
        return checkpoint

    def committed(self, manifest: Manifest, sequence: int, rows: Mapping[str, bytes]) -> None:
        """A version was published at `sequence`: its checkpoint counts, and another one may be due."""
        if manifest.checkpoint is not None and manifest.checkpoint.number == manifest.number:
            self._take(replace(manifest.checkpoint, after=sequence))
        if manifest.delta is not None:
            self._delta_bytes += sum(map(len, manifest.delta.upsert.values()))
        if self._writing is None and self._due(manifest):
            self._writing = asyncio.create_task(self._write_later(manifest, sequence, dict(rows)))

    def _due(self, manifest: Manifest) -> bool:
        if self.newest is None or manifest.number - self.newest.number >= EVERY:
            return True
        return self._delta_bytes > max(ENOUGH_BYTES, manifest.row_bytes)

    async def _write_later(self, manifest: Manifest, sequence: int, rows: Mapping[str, bytes]) -> None:
        try:
            checkpoint = await write.write_checkpoint(self._bus, manifest.number, rows, manifest.tables_digest, self._ring)
            self.use(checkpoint.shards)
            self._take(replace(checkpoint, after=sequence))
            await self._collect()
        except BusError as error:
            log.warning("no checkpoint this time", error=error)
        finally:
            self._writing = None

    async def _collect(self) -> None:
        """Delete what no stored version needs."""
        self._used = set(self.newest.shards if self.newest is not None else ())
        needed = write.needed_blobs(await read.stored(self._bus, self._group))
        unneeded = await self._bus.list_blobs() - needed - self._used
        for digest in sorted(unneeded & self._unneeded):
            async with self.blobs:
                if digest not in self._used:
                    await self._bus.delete_blob(digest)
        self._unneeded = unneeded

    async def complete(self, manifest: Manifest) -> bool:
        """Whether the store still has what a version needs. Raises what the bus raises."""
        return write.needed_blobs([manifest]) <= await self._bus.list_blobs()

    async def settle(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing
