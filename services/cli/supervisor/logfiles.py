"""Log files of bounded size: what is too large is copied aside and emptied. The writers have them open for appending and notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.cli.state import StateDirectory

LARGEST_BYTES: Final = 16 * 1024 * 1024
"""One older file of about this size is kept beside each."""
CHECK_SECONDS: Final = 5.0


async def keep_bounded(state: StateDirectory) -> None:
    """For ever."""
    while True:
        for path in log_files(state):
            with contextlib.suppress(OSError):
                if path.stat().st_size > LARGEST_BYTES:
                    await asyncio.to_thread(rotate, path)
        await asyncio.sleep(CHECK_SECONDS)


def log_files(state: StateDirectory) -> Iterator[Path]:
    """The children's, and nginx's own."""
    for directory in (state.logs, *(state.root / "nodes").glob("*/logs")):
        with contextlib.suppress(OSError):
            yield from sorted(directory.glob("*.log"))


def rotate(path: Path) -> None:
    """Copy to `<path>.1` and truncate; where there is no room for a copy, only truncate. Lines written in between are lost."""
    older = path.with_name(path.name + ".1")
    try:
        shutil.copyfile(path, older)
    except OSError:
        older.unlink(missing_ok=True)
    os.truncate(path, 0)
