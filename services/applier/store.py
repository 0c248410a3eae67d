"""What a node keeps on disk: generations (policies, rows, journal), `current`, the last known good and the one before (docs/dataplane.md).

A generation is written completely before `current` names it. Rows that change later are appended to its journal. Whatever is read back is
checked by digest: a generation that does not prove itself is not used. That proof, and not a sync of every file, is the answer to a power
failure: rows and sums are synced when a generation is made, the journal is not (a torn tail is cut off, and the bus has the rest).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from services.applier.control import lines_of
from services.shared.contracts.version import PolicyBundle, VersionId, decode_bundle
from services.shared.files import write_atomically
from services.shared.versions.read import digest_of

SUMS = "SHA256SUMS"
"""Of every text of a generation, as `sha256sum -c` reads it."""
JOURNAL_LIMIT = 16 * 1024 * 1024
"""A longer journal is folded into tables.tsv."""


class Header(Struct, frozen=True, kw_only=True):
    """The first line of tables.tsv and of each journal record: the state that holds with the rows that follow."""

    version: str
    """`epoch.number`; what Lua reports."""
    digest: str
    """The version's content digest; empty while some of its rows are deferred."""
    rows_digest: str
    """`TableDigest` of the rows as they are here."""


class Made(Struct, frozen=True, kw_only=True):
    """What of a generation is this node's own (made.json)."""

    of: str
    """Digest of the node's settings, of the constant text and of Lua: another one needs a reload."""
    tables_bytes: int
    """Size of the rows' dictionary in nginx.conf."""


class Stored(Struct, frozen=True, kw_only=True):
    """One generation, read back and proved."""

    generation: int
    id: VersionId
    digest: str
    bundle: PolicyBundle
    rows: dict[str, bytes]
    made: Made


class Spoiled(Exception):
    """A generation on disk is not what was written. The message says which part."""


class NodeLocked(Exception):
    """Another applier has this node's directory."""


class Store:
    """The directory of one node. One writer: a lock file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Raises NodeLocked."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self.directory / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NodeLocked(f"another applier runs on {self.directory}") from None

    def path(self, generation: int) -> Path:
        return self.directory / "versions" / str(generation)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    def generations(self) -> list[int]:
        """On disk, oldest first."""
        found = (self.directory / "versions").glob("*") if (self.directory / "versions").exists() else ()
        return sorted(int(p.name) for p in found if p.name.isdigit())

    @property
    def current(self) -> int:
        """The generation that `current` names; 0: none."""
        try:
            return int((self.directory / "current").readlink().name)
        except (OSError, ValueError):
            return 0

    def switch(self, generation: int) -> None:
        """Point `current` at a generation, atomically."""
        temporary = self.directory / ".current"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("versions") / str(generation))
        temporary.rename(self.directory / "current")
        _sync_directory(self.directory)

    def seal(self, generation: int, bundle: PolicyBundle, made: Made) -> None:
        """The last step of a generation's texts: what they are made of, and their sums."""
        directory = self.path(generation)
        _write(directory / "bundle.json", msgspec.json.encode(bundle))
        _write(directory / "made.json", msgspec.json.encode(made))
        lines = [f"{_sha256(file)}  {file.relative_to(directory)}\n" for file in _texts(directory)]
        _write(directory / SUMS, "".join(lines).encode())

    def write_rows(self, generation: int, header: Header, rows: Mapping[str, bytes]) -> None:
        """tables.tsv of a generation that nginx does not use yet, or (folding the journal) anew."""
        directory = self.path(generation)
        body = b"".join(k.encode() + b"\t" + v + b"\n" for k, v in rows.items())
        _write(directory / "tables.tsv", msgspec.json.encode(header) + b"\n" + body)
        # with the old journal still there, replaying it over these rows comes to the same
        (directory / "journal.tsv").unlink(missing_ok=True)

    def append(self, generation: int, header: Header, upsert: Mapping[str, bytes], delete: tuple[str, ...]) -> int:
        """One record of the journal; returns the journal's size."""
        body = msgspec.json.encode(header) + b"\n" + lines_of(upsert, delete)
        path = self.path(generation) / "journal.tsv"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(b"#%d %d\n" % (len(body), zlib.crc32(body)) + body)
            return file.tell()

    def candidates(self) -> list[int]:
        """Generations to serve from, best first: the current one, then those before it. One that never became current is none."""
        current = self.current
        return [g for g in reversed(self.generations()) if not current or g <= current]

    def read(self, generation: int) -> Stored:
        """One generation, proved. Raises Spoiled."""
        try:
            return self._read(generation)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise Spoiled(f"generation {generation} on disk is not used: {error}") from error

    def _read(self, generation: int) -> Stored:
        directory = self.path(generation)
        _prove(directory)
        first, _, body = (directory / "tables.tsv").read_bytes().partition(b"\n")
        header = msgspec.json.decode(first, type=Header)
        rows: dict[str, bytes] = {}
        for line in body.split(b"\n")[:-1]:
            key, _, row = line.partition(b"\t")
            rows[key.decode()] = row
        journal = directory / "journal.tsv"
        if journal.exists():
            header = _replay(journal.read_bytes(), rows) or header
        found = digest_of(rows).hex
        if found != header.rows_digest:
            raise ValueError(f"its rows have digest {found[:12]}, not {header.rows_digest[:12]}")
        epoch, _, number = header.version.partition(".")
        return Stored(
            generation=generation,
            id=VersionId(int(epoch), int(number)),
            digest=header.digest,
            bundle=decode_bundle((directory / "bundle.json").read_bytes()),
            rows=rows,
            made=msgspec.json.decode((directory / "made.json").read_bytes(), type=Made),
        )

    def discard(self, generation: int) -> None:
        """Remove a generation, or what there is of it."""
        shutil.rmtree(self.path(generation), ignore_errors=True)

    def keep(self, generations: Collection[int]) -> None:
        """Remove all others."""
        for generation in self.generations():
            if generation not in generations:
                self.discard(generation)

    def write_local(self, rows: Mapping[str, bytes]) -> None:
        """This node's DNS answers, for a start without it."""
        _write(self.directory / "local.tsv", b"".join(k.encode() + b"\t" + v + b"\n" for k, v in sorted(rows.items())))

    def read_local(self) -> dict[str, bytes]:
        rows: dict[str, bytes] = {}
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in (self.directory / "local.tsv").read_bytes().split(b"\n")[:-1]:
                key, _, row = line.partition(b"\t")
                rows[key.decode()] = row
        return rows

    def write_file(self, digest: str, content: str, group: int | None) -> None:
        """A file that nginx's workers open. `group`: their group, where they are another user."""
        path = self.directory / "files" / digest
        if not path.exists():
            _write(path, content.encode())
            if group is not None:
                os.chown(path, -1, group)
            path.chmod(0o640)

    def forget_files(self, keep: set[str]) -> None:
        for path in (self.directory / "files").glob("*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)


def _replay(journal: bytes, rows: dict[str, bytes]) -> Header | None:
    """Apply complete records; a torn tail ends it. Returns the last header."""
    header = None
    at = 0
    while at < len(journal):
        end = journal.find(b"\n", at)
        parts = journal[at + 1 : end].split() if end > 0 and journal[at : at + 1] == b"#" else []
        if len(parts) != 2 or not all(p.isdigit() for p in parts):
            break
        body = journal[end + 1 : end + 1 + int(parts[0])]
        if len(body) != int(parts[0]) or zlib.crc32(body) != int(parts[1]):
            break
        first, _, lines = body.partition(b"\n")
        header = msgspec.json.decode(first, type=Header)
        for line in lines.split(b"\n")[:-1]:
            if line[:1] == b"-":
                rows.pop(line[1:].decode(), None)
            else:
                key, _, row = line[1:].partition(b"\t")
                rows[key.decode()] = row
        at = end + 1 + int(parts[0])
    return header


def _texts(directory: Path) -> list[Path]:
    """What a generation consists of, rows aside: those change while it runs and have a digest of their own."""
    rows = ("tables.tsv", "journal.tsv", SUMS)
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name not in rows)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _prove(directory: Path) -> None:
    """Raises ValueError where a text is not what was written, OSError where it is gone."""
    lines = (directory / SUMS).read_text().splitlines()
    if not lines:
        raise ValueError(f"{SUMS} is empty")
    for line in lines:
        digest, _, name = line.partition("  ")
        if _sha256(directory / name) != digest:
            raise ValueError(f"{name} is not what was written")


def _write(path: Path, data: bytes) -> None:
    """Complete or not at all, readable by nobody else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data, mode=0o600)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
