"""Blobs as messages: `blob.v1.<sha256>` says how many parts there are, `blob.v1.<sha256>.<n>` is a part. The first is written last.

Not JetStream's object store: that names chunks at random and reads them through consumers, so a credential could not be limited to reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Final

import nats.js.errors
from nats.js.errors import NotFoundError

from services.shared.bus.jetstream.connection import ACK_SECONDS, Connection
from services.shared.contracts.subjects import BLOBS_STREAM, BLOBS_SUBJECTS, blob_subject

PART_BYTES: Final = 512 * 1024
READ_AT_ONCE: Final = 8
LAG_SECONDS: Final = (0.05, 0.2)
"""With three servers any copy answers, and one may be behind by a moment: what is missing is looked for again after these pauses."""


async def put(connection: Connection, data: bytes) -> str:
    """Store once; the digest."""
    digest = hashlib.sha256(data).hexdigest()
    if await _parts(connection, digest):
        return digest
    size = min(PART_BYTES, connection.client.max_payload // 2)
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    for n, part in enumerate(parts):
        await connection.js.publish(blob_subject(digest, n), part, timeout=ACK_SECONDS)
    await connection.js.publish(blob_subject(digest), str(len(parts)).encode(), timeout=ACK_SECONDS)
    return digest


async def get(connection: Connection, digest: str) -> bytes | None:
    """The bytes, checked; None: not there, incomplete, or other bytes."""
    for pause in LAG_SECONDS:
        data = await _look(connection, digest)
        if data is not None:
            return data
        await asyncio.sleep(pause)
    return await _look(connection, digest)


async def _look(connection: Connection, digest: str) -> bytes | None:
    count = await _parts(connection, digest)
    if not count:
        return None
    limit = asyncio.Semaphore(READ_AT_ONCE)

    async def part(n: int) -> bytes:
        async with limit:
            found = await connection.js.get_last_msg(BLOBS_STREAM, blob_subject(digest, n), direct=True)
        return found.data or b""

    try:
        data = b"".join(await asyncio.gather(*map(part, range(count))))
    except NotFoundError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


async def _parts(connection: Connection, digest: str) -> int:
    """0: not stored, or not wholly."""
    try:
        found = await connection.js.get_last_msg(BLOBS_STREAM, blob_subject(digest), direct=True)
        return int(found.data or b"0")
    except (NotFoundError, ValueError):
        return 0


async def listed(connection: Connection) -> set[str]:
    try:
        info = await connection.js.stream_info(BLOBS_STREAM, subjects_filter=BLOBS_SUBJECTS)
    except NotFoundError:
        return set()
    names = (subject.split(".") for subject in info.state.subjects or ())
    return {tokens[2] for tokens in names if len(tokens) == 3}


async def delete(connection: Connection, digest: str) -> None:
    with contextlib.suppress(nats.js.errors.NotFoundError):
        await connection.js.purge_stream(BLOBS_STREAM, subject=blob_subject(digest))
        await connection.js.purge_stream(BLOBS_STREAM, subject=f"{blob_subject(digest)}.*")
