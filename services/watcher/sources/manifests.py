"""A directory of manifests as a source of objects.

`look` compares the directory with what was known and says which objects are different now. It is plain, synchronous code without a
thread or a watch: `watching` says when to look, and a barrier looks whenever it is asked to.

Nothing that happens to a file in the middle of an edit takes an object away: a file that is open for writing, or does not parse, leaves
what it contributed before; a file that is gone is missed for `GONE_AFTER_SECONDS` first (editors rename the old file away and then write
the new one); what a file held that cannot be read after a restart is taken from the stream (`adopt`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from services.shared.contracts.objects import AnyObject, Key
from services.shared.contracts.problem import Problem, Reason, printable
from services.watcher.changes import Changes, ObjectChanges
from services.watcher.sources.bulk import Read, read_many
from services.watcher.sources.files import FileContent, position, read_content, unreadable
from services.watcher.sources.reading import Reading
from services.watcher.sources.scan import Listing, Signature, is_manifest_path, scan, sign

GONE_AFTER_SECONDS: Final = 0.04
"""How long a vanished file is missed before its objects go."""
QUIET_SECONDS: Final = 1.0
"""A file that stays open for writing counts as complete when it has not changed for so long."""
SETTLE_SECONDS: Final = 0.04
"""The same where the file system does not tell who has a file open."""
_LOOK_AGAIN_SECONDS: Final = 0.02
_TICK_NS: Final = 50_000_000
_COARSE_TICK_NS: Final = 2_500_000_000


class _File(Struct, kw_only=True):
    """What is known of one file."""

    signature: Signature | None
    """None: look into it again whatever its signature."""
    digest: bytes
    content: FileContent


class _Unsettled(Struct, kw_only=True):
    """A file caught in the middle of a change."""

    signature: Signature | None
    """None: it is gone."""
    since: float
    """Monotonic seconds: when this state was seen first."""


class ManifestSource:
    """See the module. Not for use by two threads at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, _File] = {}
        self._unsettled: dict[str, _Unsettled] = {}
        self._holders: dict[Key, tuple[str, ...]] = {}
        self._current: dict[Key, AnyObject] = {}
        self._orphans: dict[Key, AnyObject] = {}
        self._unreadable: dict[str, str] = {}
        self._remarkable: set[str] = set()  # files with problems or kinds that are not read
        self._contested: set[Key] = set()  # objects that several files define
        self._listed = False
        self._started = False
        self.problems: tuple[Problem, ...] = ()
        """Everything that was wrong at the last look, in the order of paths; kinds that are not read, last. May be read by any thread."""

    @property
    def complete(self) -> bool:
        """The root has been listed once: what was not found then is not there."""
        return self._listed

    def adopt(self, former: Mapping[Key, AnyObject]) -> None:
        """What the stream held before this process started: kept where a file that may define it cannot be read. Call before `look`."""
        self._orphans = dict(former)

    def look(self, paths: Collection[str] | None = None) -> Changes:
        """Look at the files named (relative to the root; None: at everything) and the unsettled ones, and say what is different."""
        touched: set[Key] = set()
        now = time.monotonic()
        if paths is not None and (not self._listed or any(self._holds_below(path) for path in paths)):
            paths = None
        if paths is not None:
            paths = {*paths, *self._unsettled}
            listing = self._sign(paths)
        else:
            listing = scan(self._root)
            self._unreadable = listing.unreadable
            self._listed = self._listed or "." not in listing.unreadable
        different: list[str] = []
        for path, signature in listing.files.items():
            file = self._files.get(path)
            if file is None or file.signature != signature:
                different.append(path)
            else:
                self._unsettled.pop(path, None)
        for path, read in read_many(self._root, different):
            self._read(path, read, now, touched)
        for path in [p for p in self._unsettled if listing.hides(p)]:
            del self._unsettled[path]
        gone = [p for p in (self._files if paths is None else paths) if p not in listing.files and not listing.hides(p)]
        for path in gone:
            self._missing(path, now, touched)
        self._started = self._started or self._listed
        changes = self._resolve(touched)
        self.problems = tuple(self._problems())
        return Changes(objects=changes, again_after_seconds=_LOOK_AGAIN_SECONDS if self._unsettled else 0.0)

    def _holds_below(self, path: str) -> bool:
        """Is this a directory with known files (that may be gone now)?"""
        return not is_manifest_path(path) and any(known.startswith(path + "/") for known in self._files)

    def _sign(self, paths: Collection[str]) -> Listing:
        files: dict[str, Signature] = {}
        failed: dict[str, str] = {}
        for path in paths:
            try:
                if is_manifest_path(path) and (signature := sign(self._root / path)):
                    files[path] = signature
            except OSError as error:
                failed[path] = error.strerror or str(error)
        return Listing(files=files, unreadable=failed)

    # --- one file

    def _read(self, path: str, read: Read | OSError, now: float, touched: set[Key]) -> None:
        known = self._files.get(path)
        former = known.content if known else None
        if isinstance(read, FileNotFoundError):
            self._missing(path, now, touched)
            return
        if isinstance(read, OSError):
            self._replace(path, _File(signature=None, digest=b"", content=unreadable(path, read.strerror or str(read), former)), touched)
            return
        reading = read.reading
        if not self._settled(path, reading, now):
            return
        exact = None if _may_change_unseen(reading) else reading.signature
        if known is not None and known.digest == reading.digest:
            known.signature = exact
            return
        content = read.content or read_content(path, reading.data, former=former, last_good=self._orphans.get)
        self._replace(path, _File(signature=exact, digest=reading.digest, content=content), touched)

    def _settled(self, path: str, reading: Reading, now: float) -> bool:
        """Is this content what its author means, or is the author still writing?"""
        # At the start, what has long been as it is need not be seen twice. Later the wall clock, which may jump, decides nothing.
        long_unchanged = not self._started and (time.time_ns() - reading.signature.changed_ns) / 1e9 > QUIET_SECONDS
        if reading.complete or long_unchanged:
            self._unsettled.pop(path, None)
            return True
        seen = self._unsettled.get(path)
        if seen is None or seen.signature != reading.signature:
            self._unsettled[path] = _Unsettled(signature=reading.signature, since=now)
            return False
        if now - seen.since < (SETTLE_SECONDS if reading.complete is None else QUIET_SECONDS):
            return False
        del self._unsettled[path]
        return True

    def _missing(self, path: str, now: float, touched: set[Key]) -> None:
        if path not in self._files:
            self._unsettled.pop(path, None)
            return
        seen = self._unsettled.get(path)
        if seen is None or seen.signature is not None:
            self._unsettled[path] = _Unsettled(signature=None, since=now)
        elif now - seen.since >= GONE_AFTER_SECONDS:
            del self._unsettled[path]
            self._replace(path, None, touched)

    def _replace(self, path: str, file: _File | None, touched: set[Key]) -> None:
        """Put a file's new contribution (None: it has none any more) in place of the former one."""
        former = self._files.get(path)
        old: Mapping[Key, AnyObject] = former.content.objects if former else {}
        new: Mapping[Key, AnyObject] = file.content.objects if file else {}
        for key in old.keys() - new.keys():
            self._hold(key, tuple(p for p in self._holders[key] if p != path))
        for key in new.keys() - old.keys():
            self._hold(key, tuple(sorted((*self._holders.get(key, ()), path))))
        touched |= old.keys() | new.keys()
        self._remarkable.discard(path)
        if file is None:
            self._files.pop(path, None)
            return
        self._files[path] = file
        if file.content.problems or file.content.ignored:
            self._remarkable.add(path)

    def _hold(self, key: Key, holders: tuple[str, ...]) -> None:
        """Note which files define an object, in the order of their paths."""
        self._contested.discard(key)
        if not holders:
            del self._holders[key]
            return
        self._holders[key] = holders
        if len(holders) > 1:
            self._contested.add(key)

    # --- all files together

    def _resolve(self, touched: set[Key]) -> ObjectChanges:
        """The new state of the objects touched: of several files that define one, the first in order counts."""
        if self._orphans:
            touched |= self._orphans.keys()
            if self._listed and not self._unclear():
                self._orphans = {}
        changes: ObjectChanges = {}
        for key in touched:
            holders = self._holders.get(key)
            obj = self._files[holders[0]].content.objects[key] if holders else self._orphans.get(key)
            if obj is not self._current.get(key) and obj != self._current.get(key):
                changes[key] = obj
            if obj is not None:
                self._current[key] = obj
            else:
                self._current.pop(key, None)
        return changes

    def _unclear(self) -> bool:
        """May there be objects in files that could not be read yet?"""
        return bool(self._unreadable) or bool(self._unsettled) or any(f.content.unknown for f in self._files.values())

    def _problems(self) -> list[Problem]:
        found = [
            Problem(reason=Reason.UNREADABLE_FILE, field=printable(path), message=printable(message))
            for path, message in sorted(self._unreadable.items())
        ]
        ignored: Counter[tuple[str, str]] = Counter()
        for path in sorted(self._remarkable):
            content = self._files[path].content
            found += content.problems
            ignored.update((i.api_version, i.kind) for i in content.ignored)
        found += [_contested(key, self._holders[key]) for key in sorted(self._contested)]
        found += [_not_read(*which, count) for which, count in sorted(ignored.items())]
        return found


def _may_change_unseen(reading: Reading) -> bool:
    """Could a later change of this file leave the very same signature? (Time stamps advance in ticks; some file systems' in seconds.)"""
    changed_ns = reading.signature.changed_ns
    return changed_ns > reading.began_ns - (_COARSE_TICK_NS if changed_ns % 1_000_000_000 == 0 else _TICK_NS)


def _contested(key: Key, holders: tuple[str, ...]) -> Problem:
    others = ", ".join(printable(path) for path in holders[1:4])
    return Problem(
        reason=Reason.INVALID_OBJECT,
        field=position(holders[1], 1),
        message=f"is defined in several files; {printable(holders[0])} counts, not {others}",
        object=str(key),
    )


def _not_read(api_version: str, kind: str, count: int) -> Problem:
    return Problem(
        reason=Reason.INVALID_OBJECT,
        field="kind",
        message=f"{api_version} {kind}: {count} ignored, not a kind that Sluice reads",
        severity="warning",
    )
