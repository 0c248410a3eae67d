"""One file's text in; what it contributes, out: objects with their lines, problems, and whether something in it stays unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from services.shared.contracts.objects import AnyObject, Key, key_of
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.telemetry.logs import get_logger
from services.watcher.normalize import Ignored, Invalid, normalize
from services.watcher.sources.documents import Document, Unreadable, line_of, read_documents

log = get_logger(__name__)

PROBLEMS_PER_FILE: Final = 20


class FileContent(Struct, frozen=True, kw_only=True):
    """What one file contributes."""

    objects: dict[Key, AnyObject] = {}
    problems: tuple[Problem, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    unknown: bool = False
    """The file may have held objects of which nothing is known now: what it may have held must not be deleted."""


LastGood = Callable[[Key], AnyObject | None]
"""The last good form of an object that this file holds in a bad form now."""


def read_content(path: str, data: bytes, *, former: FileContent | None, last_good: LastGood) -> FileContent:
    """The contribution of the file at `path` (relative to the root), given what it contributed before."""
    try:
        reader = _Reader(path, former or FileContent(), last_good)
        for document in read_documents(data, is_json=path.endswith(".json")):
            reader.read(document)
        return reader.content(first_time=former is None)
    except Unreadable as error:
        return _unreadable(path, error.line, error.message, former)
    except Exception as error:  # a bug that one file's content finds must not stop the others
        log.exception("a file cannot be read for a reason of ours", path=path)
        return _unreadable(path, 1, f"an error of the watcher ({type(error).__name__})", former)


def unreadable(path: str, message: str, former: FileContent | None) -> FileContent:
    """The contribution of a file that cannot be opened."""
    return _unreadable(path, 1, message, former)


def _unreadable(path: str, line: int, message: str, former: FileContent | None) -> FileContent:
    kept = "; the last good content stays in effect" if former and former.objects else ""
    problem = Problem(reason=Reason.UNREADABLE_FILE, field=position(path, line), message=printable(message) + kept)
    if former is None:
        return FileContent(problems=(problem,), unknown=True)
    return msgspec.structs.replace(former, problems=(problem,))


def position(path: str, line: int) -> str:
    """`file:line`, as messages show it."""
    return f"{printable(path)}:{line}"


class _Reader:
    """Collects over the documents of one file."""

    def __init__(self, path: str, former: FileContent, last_good: LastGood) -> None:
        self._path = path
        self._former = former
        self._last_good = last_good
        self._objects: dict[Key, AnyObject] = {}
        self._problems: list[Problem] = []
        self._ignored: list[Ignored] = []
        self._nameless = False

    def read(self, document: Document) -> None:
        for item in normalize(document.value):
            match item.result:
                case Ignored() as ignored:
                    self._ignored.append(ignored)
                case Invalid() as invalid:
                    self._invalid(document, item.path, invalid)
                case obj:
                    self._add(document, item.path, obj)

    def _add(self, document: Document, path: str, obj: AnyObject) -> None:
        key = key_of(obj)
        if self._objects.setdefault(key, obj) is not obj:
            self._problem(document, path, "is defined before in this file; the first one counts", key)

    def _invalid(self, document: Document, path: str, invalid: Invalid) -> None:
        where = f"{path}.{invalid.field}".strip(".")
        kept = ""
        if invalid.key is None:
            self._nameless = True
        elif (good := self._former.objects.get(invalid.key) or self._last_good(invalid.key)) is not None:
            kept = "; the last good form stays in effect" if self._objects.setdefault(invalid.key, good) is good else ""
        said = f"{invalid.field}: {invalid.message}" if invalid.field else invalid.message
        self._problem(document, where, said + kept, invalid.key, invalid.example)

    def _problem(self, document: Document, path: str, message: str, key: Key | None, example: str = "") -> None:
        if len(self._problems) >= PROBLEMS_PER_FILE:
            return
        problem = Problem(
            reason=Reason.INVALID_OBJECT,
            field=position(self._path, line_of(document, path)),
            message=message,
            object=str(key) if key else "",
            example=example,
        )
        self._problems.append(problem)

    def content(self, *, first_time: bool) -> FileContent:
        # An object without a readable name may be any of those that were here before.
        objects = self._former.objects | self._objects if self._nameless else self._objects
        return FileContent(
            objects=objects,
            problems=tuple(self._problems),
            ignored=tuple(self._ignored),
            unknown=self._nameless and first_time,
        )
