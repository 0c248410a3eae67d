"""The rows in nginx's memory: what is there, what could follow, and the push that brings it.

Order of a push: files, memory, journal. A row that needs a policy which is not loaded keeps its previous form, and what that refers to.
"""

from __future__ import annotations

import asyncio
import grp
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from services.applier.control import Control, PushResult, lines_of, push_body
from services.applier.guard import SHRINK_GUARD, SHRINK_SECONDS, Patience, shrinks
from services.applier.resolve import Names
from services.applier.rows import Split, files_of, host_count, policies_of, split, still_needed
from services.applier.store import JOURNAL_LIMIT, Header, Store, Stored
from services.applier.streams import StreamFiles
from services.shared.contracts.tables import PushHeader
from services.shared.contracts.version import TableDigest
from services.shared.sealing.ring import KeyRing
from services.shared.telemetry.logs import get_logger
from services.shared.versions.read import digest_of
from services.shared.versions.replica import Replica

log = get_logger(__name__)

WAIT_SECONDS: Final = 10.0
"""How long rows that go wait for rows whose policies are on their way."""


class Live:
    """One node's rows. `target` is what they should be; `fail` notes an error for reports."""

    def __init__(self, store: Store, control: Control, ring: KeyRing, fail: Callable[[str], None]) -> None:
        self._ring = ring
        self._store = store
        self._control = control
        self._fail = fail
        self.target = Replica(self._ring)
        self.rows: dict[str, bytes] = {}
        self._digest = TableDigest()
        """Of `rows`, kept up to date row by row."""
        self.version = ""
        self.content = ""
        """The version's digest, where `rows` is all of it; empty while some wait. nginx keeps both, to be asked for after a restart."""
        self.behind: set[str] = set()
        """Keys that may differ between `rows` and the target."""
        self.deferred: dict[str, str] = {}
        """Host row -> the policy it waits for."""
        self.group: int | None = None
        """The workers' group, where they are another user: who may read files."""
        self.names = Names({})
        self._streams = StreamFiles(store.directory / "streams")
        self.unresolved = asyncio.Event()
        """There are names to `resolve` for the first time. Not done by a push: DNS may take its time, or not answer at all."""
        self._unsent = False
        """nginx lacks some answers."""
        self._waiting = Patience(WAIT_SECONDS)
        self._shrinking = Patience(SHRINK_SECONDS)
        self._fresh: frozenset[str] = frozenset()
        self._previous: dict[str, bytes | None] = {}
        """Hosts that took up a policy of the last installation -> their form before; None: there was none."""
        self._journal_torn = False
        self.generation = 0
        """Where the journal is."""

    def set_worker_user(self, user: str) -> None:
        self.group = grp.getgrnam(user).gr_gid if user not in ("", "root") else None

    def restore(self, stored: Stored) -> None:
        """Take what the disk holds for what nginx holds, or will once it is started from it."""
        self.rows = dict(stored.rows)
        self._digest = digest_of(self.rows)
        self.version, self.content = str(stored.id), stored.digest
        self.behind, self.deferred = set(), {}
        self.names = Names(self._store.read_local())
        self.names.note(self.rows, ())
        self._write_streams(self.rows)
        self._streams.keep(self.rows)

    def forget(self) -> None:
        """Nothing is known of what nginx holds: the next push brings everything."""
        self.rows, self._digest = {}, TableDigest()
        self.version = self.content = ""
        self.target = Replica(self._ring)
        self.behind, self.deferred = set(), {}

    # --- what could follow

    def plan(self, loaded: frozenset[str], refused: Mapping[str, str], now: float, *, pinned: bool) -> Split:
        """What of the rows that are behind can go with these policies loaded. `pinned`: a rollback, somebody's wish."""
        rows = self.target.rows
        upsert = {k: rows[k] for k in self.behind if k in rows and self.rows.get(k) != rows[k]}
        gone = [k for k in self.behind if k not in rows and k in self.rows]
        parts = split(upsert, gone, loaded, refused)
        # what is on its way may replace, or still refer to, what goes: that waits with it, for a while
        if self._waiting.holds(any(p not in refused for p in parts.deferred.values()), now):
            return replace(parts, delete=())
        lost = host_count(gone)
        if self._shrinking.holds(not pinned and shrinks(host_count(self.rows) if lost else 0, lost), now):
            words = f"version {self.target.id} takes away {lost} of {host_count(self.rows)} hosts: they stay for {SHRINK_SECONDS:g} s"
            self._fail(f"{words}; a newer version or a rollback in this time keeps them")
            return replace(parts, delete=(), deferred=parts.deferred | {k: SHRINK_GUARD for k in gone if k.startswith("h/")})
        kept = still_needed(gone, parts.deferred, self.rows) if parts.deferred else set()
        return replace(parts, delete=tuple(k for k in gone if k not in kept))

    def due(self, now: float) -> bool:
        """Whether something has waited long enough."""
        return self._waiting.due(now) or self._shrinking.due(now)

    def after(self, parts: Split) -> tuple[dict[str, bytes], Header]:
        """Rows once `parts` are live, with their header on disk."""
        rows, digest = dict(self.rows), self._digest.copy()
        _change(rows, digest, parts.upsert, parts.delete)
        return rows, self._header(digest, complete=self._differing() <= {*parts.upsert, *parts.delete})

    def _differing(self) -> set[str]:
        rows = self.target.rows
        return {k for k in self.behind if self.rows.get(k) != rows.get(k)}

    def _header(self, digest: TableDigest, *, complete: bool) -> Header:
        return Header(version=str(self.target.id), digest=self.target.digest if complete else "", rows_digest=digest.hex)

    def named_policies(self) -> set[str]:
        """What the host rows that are live name."""
        return {policy for key, row in self.rows.items() if key.startswith("h/") for policy in policies_of(row)}

    # --- pushes

    async def push(self, parts: Split, *, keep_previous: bool) -> PushResult:
        """Make these rows live. Only with outcome `live` anything has changed."""
        upsert, delete = parts.upsert, parts.delete
        problem = self._write_files(upsert)
        if problem is not None:
            return problem
        version = str(self.target.id)
        content = self.target.digest if self._differing() <= {*upsert, *delete} else ""
        header = PushHeader(base=self.version, version=version, digest=content, keep_previous=keep_previous)
        result = await self._control.push(push_body(header, lines_of(upsert, delete)))
        if result.outcome == "other base":
            whole = {k: v for k, v in self.rows.items() if k not in set(delete)} | upsert
            result = await self._control.push(_everything(whole, version, content))
        if result.outcome == "live":
            await self._took(parts, version, content)
        return result

    def _write_files(self, rows: Mapping[str, bytes]) -> PushResult | None:
        try:
            for digest, content in files_of(rows).items():
                self._store.write_file(digest, content, self.group)
            self._streams.write(rows, self.names.rows)
        except OSError as problem:
            return PushResult(outcome="refused", detail=f"a file could not be written: {problem}")
        return None

    def _write_streams(self, rows: Mapping[str, bytes]) -> None:
        """Ports whose names have other answers now, or whose files were lost."""
        try:
            self._streams.write(rows, self.names.rows)
        except OSError as error:
            self._fail(f"the endpoints of a TCP or UDP service could not be written: {error}")

    async def _took(self, parts: Split, version: str, content: str) -> None:
        upsert, delete = parts.upsert, parts.delete
        for key, row in upsert.items():
            if self._fresh and key.startswith("h/") and policies_of(row) & self._fresh:
                self._previous.setdefault(key, self.rows.get(key))
        _change(self.rows, self._digest, upsert, delete)
        self.version, self.content = version, content
        self.behind = self._differing()
        self._persist(upsert, delete)
        self._write_streams(upsert)  # `resolve` may have written what was live until now
        self._streams.forget(delete)
        if any(k.startswith("f/") for k in delete):
            self._store.forget_files({k[2:] for k in self.rows if k.startswith("f/")})
        if self.names.note(upsert, delete):
            self.unresolved.set()

    async def push_all(self) -> None:
        """Bring memory to `rows`, whatever is in it."""
        problem = self._write_files(self.rows)
        self._streams.keep(self.rows)
        result = problem or await self._control.push(_everything(self.rows, self.version, self.content))
        if result.outcome != "live":
            self._fail(f"the rows could not be pushed: {result.outcome} {result.detail}")
        elif self.names.rows:
            await self._push_local(self.names.rows, ())

    async def align(self) -> None:
        """Memory was kept over a reload, or filled from disk, or is another applier's: bring it to what this one believes is live."""
        if not self.version:
            return  # it believes nothing yet: the first push brings everything
        answer = await self._control.generation()
        same = answer is not None and (answer.version, answer.digest) == (self.version, self.content)
        if not same or not self.content:
            await self.push_all()

    # --- the journal

    def _persist(self, upsert: Mapping[str, bytes], delete: tuple[str, ...]) -> None:
        header = self._header(self._digest, complete=not self.behind)
        try:
            if self._journal_torn:
                self._store.write_rows(self.generation, header, self.rows)
                self._journal_torn = False
            elif self._store.append(self.generation, header, upsert, delete) > JOURNAL_LIMIT:
                self._store.write_rows(self.generation, header, self.rows)
        except OSError as error:
            self._journal_torn = True  # what would follow a missing record proves nothing: everything is written next time
            self._fail(f"the last known good could not be written: {error}")

    # --- an installation, and back

    def installed(self, generation: int, fresh: frozenset[str]) -> None:
        """`fresh`: policies that nginx has only since this generation."""
        self.generation = generation
        self._journal_torn = False
        self._fresh, self._previous = fresh, {}

    def undo(self) -> None:
        """Hosts that took up a policy of the last installation get their form before. Follow with a reload: it brings them to nginx."""
        upsert = {k: v for k, v in self._previous.items() if v is not None}
        delete = [k for k, v in self._previous.items() if v is None]
        _change(self.rows, self._digest, upsert, delete)
        self.behind |= self._previous.keys()
        self.content = ""
        self._previous = {}

    # --- names

    async def resolve(self) -> None:
        """Ask for all names again, and push what changed. May run beside everything else."""
        self.unresolved.clear()
        changed, gone = await self.names.refresh()
        if changed or gone:
            try:
                self._store.write_local(self.names.rows)
            except OSError as error:
                self._fail(f"the answers of the node's DNS could not be written: {error}")
        if changed or gone:
            self._write_streams(self.rows)
        if changed or gone or self._unsent:
            await self._push_local(self.names.rows if self._unsent else changed, gone)

    async def _push_local(self, upsert: Mapping[str, bytes], delete: Iterable[str]) -> None:
        header = PushHeader(base=self.version, version=self.version, digest=self.content)
        result = await self._control.push(push_body(header, lines_of(upsert, delete)))
        self._unsent = result.outcome != "live"  # a version may have come between
        if self._unsent:
            log.warning("name answers could not be pushed", outcome=result.outcome)


def _everything(rows: Mapping[str, bytes], version: str, content: str) -> bytes:
    return push_body(PushHeader(base="", version=version, digest=content), lines_of(rows, ()))


def _change(rows: dict[str, bytes], digest: TableDigest, upsert: Mapping[str, bytes], delete: Iterable[str]) -> None:
    """Apply a change to rows and to their digest."""
    for key in (*upsert, *delete):
        if key in rows:
            digest.remove(key, rows.pop(key))
    for key, row in upsert.items():
        digest.add(key, row)
        rows[key] = row
