"""Sealing keys for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from services.compiler.keys import Keys
from services.shared.bus.port import Bus
from services.shared.sealing.keyfile import FILE
from services.shared.sealing.ring import KeyRing, SealKey, encode_keys

KEY = SealKey(secret=bytes(range(64)), since=0.0)


def ring() -> KeyRing:
    return KeyRing([KEY])


def key_directory(directory: Path) -> Path:
    """With a key file in it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_bytes(encode_keys([KEY]))
    return directory


@contextlib.asynccontextmanager
async def handing_out(bus: Bus, directory: Path, group: str = "default") -> AsyncIterator[Keys]:
    """What a compiler does beside compiling: give nodes their keys."""
    keys = Keys(bus, group, key_directory(directory))
    tasks = [asyncio.create_task(work) for work in keys.handing_out()]
    try:
        yield keys
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
