"""A directory in; its manifest files with a signature each, out. No file is opened here.

A signature holds the change time, which no editor can set back, so that two contents of the same size within one modification time differ.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from msgspec import Struct

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_FILES: Final = 200_000
MAX_DIRECTORY_DEPTH: Final = 32


class Signature(Struct, frozen=True, array_like=True):
    """What changes when a file's content does."""

    changed_ns: int
    modified_ns: int
    size: int
    inode: int
    device: int


class Listing(Struct, frozen=True, kw_only=True):
    """One complete look at the directory."""

    files: dict[str, Signature]
    """By path relative to the root."""
    unreadable: dict[str, str] = {}
    """Relative path of a directory (or of a file) -> why nothing is known about it. `.`: the root itself."""

    def hides(self, path: str) -> bool:
        """Is nothing known about this path because something above it could not be read?"""
        return any(d == "." or path == d or path.startswith(d + "/") for d in self.unreadable)


def is_manifest_name(name: str) -> bool:
    """`.yaml .yml .json`, not hidden: editors' swap, lock, backup and probe files have other endings or a leading dot or `#`."""
    return name.endswith(SUFFIXES) and name[0] not in ".#~"


def is_manifest_path(path: str) -> bool:
    """No component is hidden."""
    *directories, name = path.split("/")
    return is_manifest_name(name) and not any(d.startswith(".") for d in directories)


def sign(path: Path | str) -> Signature | None:
    """The signature of a regular file (links followed); None: there is none. Raises OSError for what is there but cannot be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116 - 10,000 of these are one scan
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _signature(found) if stat.S_ISREG(found.st_mode) else None


def scan(root: Path) -> Listing:
    """Every manifest file below `root`, links to files and directories followed."""
    files: dict[str, Signature] = {}
    unreadable: dict[str, str] = {}
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        directory, above = pending.pop()
        try:
            found = os.stat(root / directory)  # noqa: PTH116
            identity = (found.st_dev, found.st_ino)
            if identity in above or len(above) >= MAX_DIRECTORY_DEPTH:
                continue  # a link that leads back up
            _list(root, directory, files, unreadable, pending, above | {identity})
        except FileNotFoundError:
            if not directory:
                unreadable["."] = "the directory does not exist"
        except OSError as error:
            unreadable[directory or "."] = error.strerror or str(error)
        if len(files) > MAX_FILES:
            return Listing(files={}, unreadable={".": f"more than {MAX_FILES} manifest files"})
    return Listing(files=files, unreadable=unreadable)


def _list(
    root: Path,
    directory: str,
    files: dict[str, Signature],
    unreadable: dict[str, str],
    pending: list[tuple[str, frozenset[tuple[int, int]]]],
    above: frozenset[tuple[int, int]],
) -> None:
    """One directory's entries into `files`, its subdirectories into `pending`."""
    prefix = f"{directory}/" if directory else ""
    with os.scandir(root / directory) as entries:
        for entry in entries:  # 10,000 times in one scan, so it is written out
            name = entry.name
            if name[0] == ".":
                continue
            try:
                if name.endswith(SUFFIXES) and name[0] not in "#~":
                    found = entry.stat()
                    if stat.S_ISREG(found.st_mode):
                        files[prefix + name] = _signature(found)
                        continue
                if entry.is_dir():
                    pending.append((prefix + name, above))
            except FileNotFoundError:
                continue  # gone since, or a link to nothing
            except OSError as error:
                unreadable[prefix + name] = error.strerror or str(error)


def _signature(found: os.stat_result) -> Signature:
    return Signature(found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)
