"""Writing checkpoints: all rows of a version as content-addressed shards, and taking away blobs that no stored version needs."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from services.shared.bus.port import Bus
from services.shared.contracts.version import Checkpoint, Manifest
from services.shared.sealing.material import seal_row
from services.shared.sealing.ring import KeyRing

SHARD_BYTES: Final = 256 * 1024
"""What a shard is meant to have at most; a single larger row makes a larger shard."""

ROWS_PER_STEP: Final = 2000
"""Placed between two turns of the event loop: a millisecond or two."""

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def shard_count(total_bytes: int) -> int:
    """A power of two, so that growth splits shards and leaves the others as they are."""
    count = 1
    while count * SHARD_BYTES < total_bytes:
        count *= 2
    return count


async def write_checkpoint(bus: Bus, number: int, rows: Mapping[str, bytes], tables_digest: str, ring: KeyRing) -> Checkpoint:
    """Store all rows of version `number`; they must not change meanwhile. Raises what the bus raises.

    Nothing refers to the blobs before a manifest does.
    """
    shards: list[dict[str, msgspec.Raw]] = [{} for _ in range(shard_count(sum(len(k) + len(v) for k, v in rows.items())))]
    for n, (key, row) in enumerate(rows.items(), 1):
        shards[zlib.crc32(key.encode()) % len(shards)][key] = msgspec.Raw(seal_row(key, row, ring))
        if n % ROWS_PER_STEP == 0:
            await asyncio.sleep(0)
    digests = []
    for shard in shards:
        digests.append(await bus.put_blob(_encode(shard)))
        await asyncio.sleep(0)
    return Checkpoint(number=number, tables_digest=tables_digest, shards=tuple(digests))


def needed_blobs(manifests: Iterable[Manifest]) -> set[str]:
    """Every blob that the stored versions refer to."""
    needed: set[str] = set()
    for manifest in manifests:
        needed.add(manifest.policy_digest)
        if manifest.checkpoint is not None:
            needed.update(manifest.checkpoint.shards)
    return needed
