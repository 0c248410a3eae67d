"""A follower's copy of a group's rows, moved from version to version: by an inline delta where it fits, else from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from services.shared.bus.port import Bus
from services.shared.contracts.version import Manifest, TableDigest, VersionId, version_digest
from services.shared.sealing.ring import KeyRing
from services.shared.versions.read import Unreadable, difference, digest_of, newest_rows, opened

NOTHING: Final = VersionId(0, 0)


Look = Callable[[Mapping[str, bytes]], None]


def unseen(rows: Mapping[str, bytes]) -> None:
    """A `Look` that trusts who made them."""


class Move(Struct, frozen=True, kw_only=True):
    """What changes between the version held before and the one held now."""

    upsert: dict[str, bytes]
    delete: tuple[str, ...]


class Replica:
    """The rows of one version, with their digest."""

    def __init__(
        self,
        ring: KeyRing,
        id: VersionId = NOTHING,
        digest: str = "",
        rows: dict[str, bytes] | None = None,
        tables: TableDigest | None = None,
    ) -> None:
        self._ring = ring
        self.id = id
        self.digest = digest
        """Of the whole version; empty: none is held."""
        self.rows = rows if rows is not None else {}
        self._tables = tables or digest_of(self.rows)

    @property
    def tables(self) -> TableDigest:
        """Of the rows; the caller's own copy."""
        return self._tables.copy()

    @property
    def row_bytes(self) -> int:
        return self._tables.row_bytes

    def inline(self, manifest: Manifest, look: Look = unseen) -> Move | None:
        """Move by the manifest's own delta; None where it does not fit what is held, or its digest does not come out.

        `look` sees the new rows, opened, before they are taken; what it raises comes out, and nothing has changed then.
        """
        if manifest.delta is None or manifest.parent != self.digest or not self.digest:
            return None
        try:
            upsert = opened(manifest.delta.upsert, self._ring)
        except Unreadable:
            return None
        tables = self._tables.copy()
        touched = {*upsert, *manifest.delta.delete}
        for key in touched & self.rows.keys():
            tables.remove(key, self.rows[key])
        for key, row in upsert.items():
            tables.add(key, row)
        if tables.hex != manifest.tables_digest or manifest.digest != version_digest(manifest.policy_digest, tables.hex):
            return None
        look(upsert)
        for key in manifest.delta.delete:
            self.rows.pop(key, None)
        self.rows.update(upsert)
        self._take(manifest, tables)
        return Move(upsert=upsert, delete=manifest.delta.delete)

    async def fetch(self, bus: Bus, manifest: Manifest, look: Look = unseen) -> Move:
        """Move by checkpoint and deltas. Raises Unreadable, what the bus raises, and what `look` does; nothing has changed then."""
        rows = await newest_rows(bus, manifest, self._ring)
        upsert, delete = difference(self.rows, rows)
        look(upsert)
        self.rows = rows
        self._take(manifest, digest_of(rows))
        return Move(upsert=upsert, delete=delete)

    def _take(self, manifest: Manifest, tables: TableDigest) -> None:
        self._tables = tables
        self.id = manifest.id
        self.digest = manifest.digest
