"""Paths of files in; each read, out. Of very many, a part is read and normalized by helper processes on the other cores.

A helper is this module as a program: paths on its standard input, what it read on its standard output. It answers only for files with
nothing wrong in them: one that cannot be read, or in which anything is bad, is read by the caller as if there were no helpers, and so is
everything when a helper dies. A helper whose watcher is gone ends by itself.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.shared.contracts.objects import AnyObject, key_of
from services.shared.telemetry.logs import get_logger
from services.watcher.normalize import Ignored
from services.watcher.sources.files import FileContent, read_content
from services.watcher.sources.reading import Reading, read_file

log = get_logger(__name__)

FILES_PER_HELPER: Final = 2_000
"""Fewer are not worth the tenth of a second in which a helper starts. A file of three objects takes 0.2 ms."""
HELPERS: Final = 3
"""At most: each holds its part of the objects until it is done."""
HELPER_SECONDS: Final = 300.0
"""A helper that takes longer is ended."""


class Read(Struct, frozen=True, kw_only=True):
    """One file."""

    reading: Reading
    content: FileContent | None = None
    """None: it has not been looked into yet. Otherwise `reading.data` is empty."""


class _Answer(Struct, array_like=True):
    """A helper's output for one file."""

    path: bytes
    reading: Reading
    objects: list[AnyObject]
    ignored: tuple[Ignored, ...]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_paths: Final = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_all: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_answer: Final = msgspec.msgpack.Decoder(_Answer).decode


def helpers_for(files: int) -> int:
    """How many processes should help to read so many files here."""
    return min(HELPERS, len(os.sched_getaffinity(0)) - 1, files // FILES_PER_HELPER)


def read_many(root: Path, paths: list[str]) -> Iterator[tuple[str, Read | OSError]]:
    """All of `paths` (relative to `root`), in any order, each read as late as possible."""
    helpers = helpers_for(len(paths))
    own, *shares = [paths[first :: helpers + 1] for first in range(helpers + 1)]
    if not shares:
        yield from _read_all(root, own)
        return
    with ThreadPoolExecutor(helpers) as threads:
        answers = [threads.submit(_helped, root, share) for share in shares]
        yield from _read_all(root, own)
        for share, answer in zip(shares, answers, strict=True):
            found = answer.result()
            yield from found.items()
            yield from _read_all(root, [path for path in share if path not in found])


def _read_all(root: Path, paths: list[str]) -> Iterator[tuple[str, Read | OSError]]:
    for path in paths:
        try:
            yield path, Read(reading=read_file(root / path))
        except OSError as error:
            yield path, error


def _helped(root: Path, paths: list[str]) -> dict[str, Read]:
    """What a helper read of `paths`; nothing when it failed."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            (sys.executable, "-m", __name__, root),
            input=_encode([os.fsencode(path) for path in paths]),  # bytes: names of files need not be Unicode
            stdout=subprocess.PIPE,
            timeout=HELPER_SECONDS,
            check=True,
        )
        answers = [_decode_answer(raw) for raw in _decode_all(done.stdout)]
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        log.warning("a process that helps with reading failed; going on without it", error=error, files=len(paths))
        return {}
    return {os.fsdecode(answer.path): _read(answer) for answer in answers}


def _read(answer: _Answer) -> Read:
    content = FileContent(objects={key_of(o): o for o in answer.objects}, ignored=answer.ignored)
    return Read(reading=answer.reading, content=content)


# --- the helper


def main() -> None:
    """The directory is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for the watcher
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    gc.disable()  # nothing is thrown away before the end
    watcher, root = os.getppid(), Path(sys.argv[1])
    answers: list[msgspec.Raw] = []
    for path in _decode_paths(sys.stdin.buffer.read()):
        if os.getppid() != watcher:
            return  # nobody waits for it any more
        if answer := _answer(root, path):
            answers.append(msgspec.Raw(answer))
    sys.stdout.buffer.write(_encode(answers))


def _answer(root: Path, encoded: bytes) -> bytes | None:
    """None: the watcher should read this file itself."""
    path = os.fsdecode(encoded)
    try:
        reading = read_file(root / path)
        content = read_content(path, reading.data, former=None, last_good=lambda _: None)
        if content.problems:
            return None
        return _encode(_Answer(encoded, replace(reading, data=b""), list(content.objects.values()), content.ignored))
    except OSError:
        return None


if __name__ == "__main__":
    main()
