"""One file read whole, and only when nobody is writing it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import stat
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from services.watcher.sources.documents import MAX_FILE_BYTES
from services.watcher.sources.scan import Signature

_F_SETSIG: Final = 10  # fcntl(2); the module does not name it


class Reading(Struct, frozen=True, kw_only=True):
    data: bytes
    digest: bytes
    """Of `data`, 16 bytes."""
    signature: Signature
    """Of the very file that was read."""
    began_ns: int
    """Unix nanoseconds: when the reading began."""
    complete: bool | None
    """False: someone has it open for writing; None: this file system does not tell."""


def read_file(path: Path) -> Reading:
    """The content of a regular file. Raises OSError."""
    began_ns = time.time_ns()
    # O_NONBLOCK: a FIFO put in the file's place since the scan must not block.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = _read(fd, before.st_size)
        complete = _nobody_writes(fd)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    same = (before.st_ctime_ns, before.st_size) == (after.st_ctime_ns, after.st_size)
    return Reading(
        data=data,
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        began_ns=began_ns,
        signature=Signature(after.st_ctime_ns, after.st_mtime_ns, after.st_size, after.st_ino, after.st_dev),
        complete=complete if same else False,
    )


def _read(fd: int, size: int) -> bytes:
    """Everything up to the bound, and a byte beyond it."""
    data = os.read(fd, min(size, MAX_FILE_BYTES) + 1)
    if len(data) <= size:
        return data
    with os.fdopen(fd, "rb", closefd=False) as file:  # it has grown
        return data + file.read(MAX_FILE_BYTES + 1)


def _nobody_writes(fd: int) -> bool | None:
    """Linux grants a read lease only while no process has the file open for writing. It is given back at once.

    Someone who opens the file for writing in between waits for these microseconds and makes the kernel signal us: with a signal that
    is ignored by default, not with SIGIO, which would end the process.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK) else None
    return True
