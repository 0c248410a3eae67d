"""What a node checks of a version's rows, whoever made them: their form, their size, and how much they take away at once.

A version that does not fit is refused before anything is fetched. One that takes away most hosts is slowed down, not refused: what it
adds and changes goes at once, what it deletes waits `SHRINK_SECONDS`, and the node says so. That is time for a mistake to be followed by
its correction (a newer version, a rollback), and for a real removal only a delay.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from services.applier.streams import ROW_PREFIX, file_name
from services.shared.contracts.tables import StreamRow
from services.shared.contracts.version import Manifest

SHRINK_FROM: Final = 100
"""Hosts a node must have before a shrink counts: small sets change as a whole every day."""
SHRINK_SECONDS: Final = 15.0
SHRINK_GUARD: Final = "shrink-guard"
"""Stands where a deferred row names its policy."""

_KEY = re.compile(r"[^\x00-\x1f\x7f]+")
_FILE = re.compile(r"f/([0-9a-f]{64})")


class Patience:
    """How long one thing may wait for another. `now` is monotonic seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0
        """0: nothing waits."""
        self._spent = False

    def holds(self, wanted: bool, now: float) -> bool:
        """Whether to go on waiting. The time begins when there is first something to wait for, and ends with it."""
        if not wanted:
            self._until, self._spent = 0.0, False
            return False
        self._until = self._until or now + self._seconds
        self._spent = now >= self._until
        return not self._spent

    def due(self, now: float) -> bool:
        """Whether the time has run out and nobody has looked since."""
        return bool(self._until) and not self._spent and now >= self._until


def too_large(manifest: Manifest, tables_bytes: int, limit: int) -> str:
    """Why a version cannot be held by this node; empty: it can. `tables_bytes`: what its rows would take in nginx's memory."""
    if tables_bytes <= limit:
        return ""
    return (
        f"version {manifest.id} is too large for this node: {manifest.rows} rows of {manifest.row_bytes >> 20} MiB need "
        f"{tables_bytes >> 20} MiB of table memory, and {limit >> 20} MiB are allowed"
    )


def shrinks(hosts: int, gone: int) -> bool:
    """Whether losing `gone` of `hosts` at once is worth a second look: more than half of many."""
    return hosts > SHRINK_FROM and 2 * gone > hosts


class Malformed(Exception):
    """Rows that must reach neither disk nor nginx. The message says which, and why."""


def look(rows: Mapping[str, bytes]) -> None:
    """Raises Malformed. Keys and rows are lines of files and pushes; an `f/` or `l/` key names a file. What was sealed is open here."""
    for key, row in rows.items():
        if not _KEY.fullmatch(key):
            raise Malformed(f"a row's key has control characters, or none at all: {key[:80]!r}")
        if key.startswith(("n/", "p:")):
            raise Malformed(f"row {key[:80]!r} is of a kind that only the node itself writes")
        if b"\n" in row or b"\r" in row:
            raise Malformed(f"row {key[:80]!r} is not of one line")
        if key.startswith("f/") and not _is_file(key, row):
            raise Malformed(f"row {key[:80]!r} is not the file that its name says")
        if key.startswith(ROW_PREFIX) and not _is_stream(key, row):
            raise Malformed(f"row {key[:80]!r} is not a port's endpoints")


def unnamed(keys: Iterable[str]) -> str:
    """`look` for keys that are deleted: what is wrong with one; empty: nothing."""
    bad = next((k for k in keys if not _KEY.fullmatch(k)), None)
    return "" if bad is None else f"a deleted row's key has control characters, or none at all: {bad[:80]!r}"


def _is_stream(key: str, row: bytes) -> bool:
    try:
        file_name(key)
        msgspec.json.decode(row, type=StreamRow)
    except ValueError:  # a DecodeError is one
        return False
    return True


def _is_file(key: str, row: bytes) -> bool:
    named = _FILE.fullmatch(key)
    try:
        content = msgspec.json.decode(row, type=dict[str, str]).get("content")
    except msgspec.DecodeError:
        return False
    return named is not None and content is not None and hashlib.sha256(content.encode()).hexdigest() == named[1]
