"""The rows of the current state, and what has changed since they were last taken. Rows with several owners live as long as one of them."""

from __future__ import annotations

from collections.abc import Iterable

from services.shared.contracts.tables import Row, encode_row


class Tables:
    """Key -> row bytes, with the changes since `take`."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self._changed: dict[str, bytes | None] = {}
        """Key -> what was there when changes were last taken."""
        self._owners: dict[str, set[str]] = {}

    def put(self, key: str, row: Row | None) -> None:
        """Set or remove one row."""
        new = encode_row(row) if row is not None else None
        old = self.rows.get(key)
        if new == old:
            return
        self._changed.setdefault(key, old)
        if new is None:
            del self.rows[key]
        else:
            self.rows[key] = new

    def own(self, owner: str, before: Iterable[str], after: dict[str, Row]) -> None:
        """`owner` names shared rows (certificates, files) by content; it named `before`, and names `after` from now on."""
        for key, row in after.items():
            self._owners.setdefault(key, set()).add(owner)
            self.put(key, row)
        for key in set(before) - set(after):
            owners = self._owners.get(key, set())
            owners.discard(owner)
            if not owners:
                self._owners.pop(key, None)
                self.put(key, None)

    def take(self) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """(upserts, deletes) since the last time; rows that came back to what they were are neither."""
        upsert: dict[str, bytes] = {}
        delete: list[str] = []
        for key in sorted(self._changed):
            old, new = self._changed[key], self.rows.get(key)
            if new == old:
                continue
            if new is None:
                delete.append(key)
            else:
                upsert[key] = new
        self._changed.clear()
        return upsert, tuple(delete)
