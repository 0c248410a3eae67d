"""What a compiler had in hand when it died: notes in a file that outlives it in; which forms to leave alone, and what stands instead, out.

A process that is killed, runs out of memory or ends with a bug's exception would meet the same object again after each restart. So it
notes which objects it works on, in memory that the next process finds. One that was in hand at `LIMIT` deaths in a row is left alone until
its content changes: the form before it stands, where that is known. A death at a random moment harms nobody: who is compiled in the next
life is no suspect any more. Files are written only where a compiler died.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.shared.contracts.objects import Ingress
from services.shared.contracts.problem import Problem, Reason
from services.shared.files import write_atomically
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

LIMIT: Final = 2
"""Deaths with one form in hand; after twice as many the form before it is not tried any more either."""
MOST_SUSPECTS: Final = 20
"""Of one death: the newest Ingresses of a host that many share."""
MOST_KEPT: Final = 100
"""Objects with strikes; the newest."""

_LENGTH: Final = struct.Struct("<I")
_UNIT: Final = range(_LENGTH.size, 64 * 1024)
"""Where in the file it stands what is in hand, after its length."""
_BATCH: Final = range(64 * 1024 + _LENGTH.size, 1024 * 1024)
"""And the forms before of what has changed."""
_NOTHING: Final = _LENGTH.pack(0)
_REVIEW: Final = "Review"

_FAILPOINT: Final = os.environ.get("SLUICE_FAILPOINT", "")

T = TypeVar("T")
Key = tuple[str, str, str]


class Suspect(Struct, frozen=True, array_like=True):
    """One form of one object."""

    kind: str
    """`Ingress`; `Review`: one that admission is asked about, which has its digest for a name."""
    namespace: str
    name: str
    digest: str

    @property
    def key(self) -> Key:
        return self.kind, self.namespace, self.name


class Strikes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often compilers died with one form in hand."""

    suspect: Suspect
    count: int
    """0: it was only changed at the same time; `before` is what matters."""
    before: Ingress | None = None
    """The last form that was compiled; None: it is not known."""

    @property
    def stands(self) -> Ingress | None:
        """What to compile instead; None: nothing."""
        return self.before if self.count < 2 * LIMIT else None

    def problem(self) -> Problem:
        """For its verdict."""
        instead = "the form before stays" if self.stands is not None else "it is left out"
        return Problem(
            reason=Reason.INTERNAL,
            field="spec",
            message=f"the compiler died {LIMIT} times while compiling this; {instead} until it changes",
        )


def suspect_of(ingress: Ingress) -> Suspect:
    """By what it says: a new status, label or resourceVersion makes it no other."""
    return Suspect("Ingress", ingress.metadata.namespace, ingress.metadata.name, _digest(ingress.metadata.annotations, ingress.spec))


def suspect_of_review(namespace: str, obj: dict[str, Any]) -> Suspect:
    """Whatever it is called and however often it is sent. `obj`: as it came."""
    metadata = obj.get("metadata")
    digest = _digest(metadata.get("annotations") if isinstance(metadata, dict) else None, obj.get("spec"))
    return Suspect(_REVIEW, namespace, digest, digest)


def _digest(annotations: object, spec: object) -> str:
    return hashlib.sha256(msgspec.json.encode((annotations, spec), order="deterministic")).hexdigest()[:32]


class Crashes:
    """The notes of one compiler process. Without a directory nothing is noted, and nobody is suspected."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: of this compiler alone. Where it cannot be used, that is logged, and there are no notes."""
        self._strikes: dict[Key, Strikes] = {}
        self._left_alone: set[Key] = set()
        self.doubtful: set[tuple[str, str]] = set()
        """(namespace, name) of Ingresses to be left alone whose last good form is not known: see `acquit`."""
        self._notes: _Notes | None = None
        self._batched = False
        if directory is not None:
            self._file = directory / "strikes.json"
            try:
                directory.mkdir(parents=True, exist_ok=True)
                self._notes = _Notes(directory / "in-hand")
            except OSError as error:
                log.error("no notes for the case that this compiler dies", directory=directory, error=error)
            else:
                self._count(self._notes)

    @property
    def left_alone(self) -> int:
        """How many objects are."""
        return len(self._left_alone)

    # --- what is in hand

    def note(self, *suspects: Suspect) -> None:
        """From now on, until `done`."""
        if self._notes is not None and suspects:
            self._notes.write(_UNIT, msgspec.json.encode(suspects[-MOST_SUSPECTS:]))

    def done(self) -> None:
        """Nothing is in hand."""
        if self._notes is not None:
            self._notes.clear(_UNIT)

    def batch(self, before: Iterable[Ingress]) -> None:
        """The last good forms of all that is about to be compiled; as many as there is room for."""
        if self._notes is None:
            return
        room, parts = _BATCH.stop - _BATCH.start - 2, []
        for ingress in before:
            parts.append(part := msgspec.json.encode(ingress))
            room -= len(part) + 1
            if room < 0:
                parts.pop()
                break
        if parts or self._batched:
            self._notes.write(_BATCH, b"[" + b",".join(parts) + b"]")
        self._batched = bool(parts)

    def settle(self) -> None:
        """Everything is compiled: who was not left alone is no suspect any more."""
        if self._batched:
            self.batch(())
        if not self._strikes:
            return
        kept = {k: s for k, s in self._strikes.items() if k in self._left_alone or s.suspect.kind == _REVIEW}
        kept = {k: replace(s, count=LIMIT) if k in self._left_alone and s.stands is not None else s for k, s in kept.items()}
        if kept != self._strikes:
            self._strikes = kept
            self._save()

    # --- what is suspected

    def held(self, suspect: Suspect) -> Strikes | None:
        """Whether to leave this form alone: then, what stands instead."""
        found = self._strikes.get(suspect.key)
        if found is None or found.count < LIMIT or found.suspect.digest != suspect.digest:
            self._left_alone.discard(suspect.key)
            return None
        self._left_alone.add(suspect.key)
        return found

    def fine(self, suspect: Suspect) -> None:
        """It was worked on, and nothing happened."""
        if self._strikes.pop(suspect.key, None) is not None:
            self._save()

    def acquit(self, namespace: str, name: str) -> None:
        """This form is in the version that stands: what kills is something else (too little memory, a new release). To leave it out would
        only do harm; everything stays as it is, until the cause is found."""
        if (namespace, name) in self.doubtful:
            log.error("compilers die of what was compiled before; nothing changes until they do not", ingress=f"{namespace}/{name}")
            self.doubtful.discard((namespace, name))
            self._strikes.pop(("Ingress", namespace, name), None)
            self._save()

    def forget(self, namespace: str, name: str) -> None:
        """There is no such Ingress any more; `settle` drops it."""
        self._left_alone.discard(("Ingress", namespace, name))

    # --- from one life to the next

    def _count(self, notes: _Notes) -> None:
        """One more strike for what the life before had in hand."""
        suspects, forms = _decoded(notes.read(_UNIT), Suspect), _decoded(notes.read(_BATCH), Ingress)
        notes.clear(_BATCH)
        self._strikes = {s.suspect.key: s for s in _stored(self._file)}
        if suspects:
            self._strike(suspects, forms)
        self.doubtful = {k[1:] for k, s in self._strikes.items() if k[0] == "Ingress" and s.count >= LIMIT and s.before is None}

    def _strike(self, suspects: tuple[Suspect, ...], forms: tuple[Ingress, ...]) -> None:
        before = {suspect_of(form).key: form for form in forms}
        for suspect in (*(suspect_of(form) for form in forms), *suspects):
            self._strikes.setdefault(suspect.key, Strikes(suspect=suspect, count=0, before=before.get(suspect.key)))
        for suspect in suspects:
            known = self._strikes.pop(suspect.key)
            count = known.count + 1 if known.suspect.digest == suspect.digest else 1
            self._strikes[suspect.key] = replace(known, suspect=suspect, count=count)
            log.error("a compiler died with this in hand", kind=suspect.kind, object=f"{suspect.namespace}/{suspect.name}", times=count)
        self._strikes = dict(list(self._strikes.items())[-MOST_KEPT:])
        self._save()
        self.done()

    def _save(self) -> None:
        """Where there is no room for it, this process knows it all the same."""
        if self._notes is None:
            return
        try:
            write_atomically(self._file, msgspec.json.encode(list(self._strikes.values())))
        except OSError as error:
            log.error("strikes could not be stored", error=error)


class _Notes:
    """A file in memory, of one process, with two texts in it. What was written stays when the process is killed."""

    def __init__(self, file: Path) -> None:
        with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the map keeps it
            os.posix_fallocate(opened.fileno(), 0, _BATCH.stop)  # on a full disk, a later write would be a signal and no error
            self._map = mmap.mmap(opened.fileno(), _BATCH.stop)

    def write(self, place: range, data: bytes) -> None:
        """Nothing, where it is too long. The length is written last: a death in between leaves nothing, not half of it."""
        self.clear(place)
        if len(data) <= len(place):
            self._map[place.start : place.start + len(data)] = data
            self._map[place.start - _LENGTH.size : place.start] = _LENGTH.pack(len(data))

    def clear(self, place: range) -> None:
        self._map[place.start - _LENGTH.size : place.start] = _NOTHING

    def read(self, place: range) -> bytes:
        (length,) = _LENGTH.unpack(self._map[place.start - _LENGTH.size : place.start])
        return self._map[place.start : place.start + min(length, len(place))]


def _decoded(data: bytes, kind: type[T]) -> tuple[T, ...]:
    try:
        return msgspec.json.decode(data, type=tuple[kind, ...]) if data else ()  # type: ignore[valid-type]
    except (msgspec.DecodeError, RecursionError):
        return ()  # of another release


def _stored(file: Path) -> list[Strikes]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Strikes])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        log.error("strikes could not be read; they are counted anew", error=error)
        return []


def failpoint(stage: str, hosts: Iterable[str]) -> None:
    """For tests: a process with SLUICE_FAILPOINT=`stage host` dies here, as by kill -9."""
    if _FAILPOINT and _FAILPOINT in {f"{stage} {host}" for host in hosts}:
        os.kill(os.getpid(), signal.SIGKILL)
