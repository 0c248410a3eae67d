"""Committing versions: compare-and-set on the subject's last sequence; the manifest is the only commit point.

Several compilers may commit. With the same content the loser adopts the winner's version; with other content it rebases onto it.
Numbers are never used again for other content: an epoch begins where the stream's history cannot be continued.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from services.shared.bus.port import Bus, BusUnavailable, Conflict
from services.shared.contracts.report import decode_node_report
from services.shared.contracts.subjects import NODES_BUCKET, config_subject
from services.shared.contracts.version import (
    Cause,
    Checkpoint,
    Manifest,
    PolicyBundle,
    TableDigest,
    VersionId,
    bundle_digest,
    encode_manifest,
    version_digest,
)
from services.shared.telemetry.logs import get_logger
from services.shared.versions import read, write

log = get_logger(__name__)

INLINE_BYTES: Final = 256 * 1024
"""A larger delta travels as a checkpoint."""
CHECKPOINT_EVERY: Final = 16
CAUSES_SHOWN: Final = 100


class Change(Struct, frozen=True, kw_only=True):
    """What the compiler wants committed."""

    rows: dict[str, bytes]
    """All rows; not kept by reference."""
    upsert: dict[str, bytes]
    """What differs from the rows of the last `Change`."""
    delete: tuple[str, ...]
    bundle: PolicyBundle
    causes: Sequence[Cause] = ()
    covers: int = 0
    compiled_at: float = 0.0
    trace: str = ""
    note: str = ""


class Committer:
    """The head of one group, and how it moves."""

    def __init__(self, bus: Bus, group: str) -> None:
        self._bus = bus
        self._group = group
        self._subject = config_subject(group)
        self.head: Manifest | None = None
        self._sequence = 0
        self._rows: dict[str, bytes] = {}
        """The head's rows."""
        self._known = False
        """Whether `_rows` are really the head's; otherwise the next commit writes all."""
        self._in_step = False
        """Whether the last Change's rows are the head's, so that its successor's upserts are enough."""
        self._seen = VersionId(0, 0)
        """The greatest version ever seen, here or in a node's report."""
        self._checkpoint: Checkpoint | None = None
        self._digest_value: TableDigest | None = None
        """Of the newest prepared version's rows."""
        self._stale: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up where the stream ends."""
        for value in (await self._bus.entries(NODES_BUCKET)).values():
            report = decode_node_report(value)
            self._seen = max(self._seen, VersionId(report.epoch, report.number))
        await self._reload()

    async def _reload(self) -> None:
        found = await read.head(self._bus, self._group)
        self._in_step = self._known = False
        self._rows = {}
        if found is None:
            self._sequence = 0
            if self.head is not None:
                log.warning("the versions are gone; a new epoch begins", last=self.head.id)
            self.head = None
            self._checkpoint = None
            return
        self.head, self._sequence = found
        self._seen = max(self._seen, self.head.id)
        self._checkpoint = self.head.checkpoint
        try:
            self._rows = await read.rows_of(self._bus, self.head, await read.stored(self._bus, self._group))
            self._known = True
        except read.Unreadable as error:
            log.warning("the head's rows cannot be read; the next version is written whole", error=error)

    @property
    def in_step(self) -> bool:
        """Whether nothing needs committing while the rows do not change."""
        return self._in_step and self._known

    @property
    def pinned(self) -> int:
        return self.head.pinned if self.head else 0

    def note_node(self, id: VersionId, digest: str) -> bool:
        """A node reports a version; True: it is ahead of the head or contradicts it, and the next commit must begin a new epoch."""
        self._seen = max(self._seen, id)
        if self.head is None or id.epoch == 0:
            return False
        ahead = id > self.head.id or (id == self.head.id and digest != "" and digest != self.head.digest)
        if ahead:
            self._known = self._in_step = False
        return ahead

    async def commit(self, change: Change) -> Manifest | None:
        """Commit, unless the content is the head's already or a rollback is pinned. Returns the new manifest; None: nothing to commit."""
        if self.pinned:
            self._in_step = False
            return None
        return await self._commit(change, pinned=0)

    async def roll_back(self, number: int, trace: str = "") -> Manifest:
        """A new version with the content of an old one, pinned. Raises Unreadable."""
        manifests = await read.stored(self._bus, self._group)
        old = next((m for m in reversed(manifests) if m.number == number), None)
        if old is None:
            kept = f"{manifests[0].number} to {manifests[-1].number} are" if manifests else "none is"
            raise read.Unreadable(f"version {number} is not kept; {kept}")
        rows = await read.rows_of(self._bus, old, manifests)
        bundle = await read.bundle_of(self._bus, old)
        change = Change(
            rows=rows, upsert={}, delete=(), bundle=bundle, covers=self.head.covers if self.head else 0, note=f"rollback to {number}"
        )
        self._in_step = False
        manifest = await self._commit(change, pinned=number)
        self._in_step = False
        if manifest is None:
            raise read.Unreadable(f"version {number} could not be committed")
        return manifest

    async def release(self, change: Change) -> Manifest | None:
        """End a rollback: commit the live content."""
        self._in_step = False
        return await self._commit(msgspec.structs.replace(change, note="release"), pinned=0)

    async def _commit(self, change: Change, pinned: int) -> Manifest | None:
        delay = 0.05
        while True:
            try:
                manifest = await self._prepare(change, pinned)
                if manifest is None:
                    return None
                sequence = await self._bus.publish(
                    self._subject, encode_manifest(manifest), headers={"traceparent": change.trace} if change.trace else None,
                    expected_last=self._sequence,
                )  # fmt: skip
            except Conflict:
                await self._reload()
                continue
            except BusUnavailable as error:
                log.warning("a version could not be committed yet", error=error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)
                await self._after_doubt()
                continue
            self._moved(manifest, sequence, change)
            return manifest

    async def _after_doubt(self) -> None:
        """The last publish may or may not be stored."""
        try:
            await self._bus.ensure()
            found = await read.head(self._bus, self._group)
            if (found[1] if found else 0) != self._sequence:
                await self._reload()
        except BusUnavailable:
            return

    def _moved(self, manifest: Manifest, sequence: int, change: Change) -> None:
        if self._in_step:
            for key in change.delete:
                self._rows.pop(key, None)
            self._rows.update(change.upsert)
        else:
            self._rows = dict(change.rows)
        self.head, self._sequence = manifest, sequence
        self._seen = max(self._seen, manifest.id)
        self._known = self._in_step = True
        if self._checkpoint is None or manifest.number - self._checkpoint.number >= CHECKPOINT_EVERY:
            task = asyncio.create_task(self._write_checkpoint(manifest, dict(self._rows)))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    def _next_id(self) -> VersionId:
        if self.head is None or not self._known or self._seen > self.head.id:
            fresh = self._seen > VersionId(0, 0)
            return VersionId(self._seen.epoch + 1, self._seen.number + 1) if fresh else VersionId(1, 1)
        return VersionId(self.head.epoch, self.head.number + 1)

    async def _prepare(self, change: Change, pinned: int) -> Manifest | None:
        if self._in_step and self._known:
            upsert, delete = change.upsert, change.delete
        else:
            upsert, delete = read.difference(self._rows, change.rows)
        policies = msgspec.json.encode(change.bundle)
        policy_digest = bundle_digest(change.bundle)
        tables = read.digest_of(self._rows) if self.head is None or not self._known else None
        digest = tables or await self._digest()
        digest = digest.copy()
        for key in (*upsert, *delete):
            if key in self._rows:
                digest.remove(key, self._rows[key])
        for key, row in upsert.items():
            digest.add(key, row)
        content = version_digest(policy_digest, digest.hex)
        if self.head is not None and self._known and content == self.head.digest and pinned == self.pinned and self._seen <= self.head.id:
            self._in_step = True
            return None
        id = self._next_id()
        if self.head is None or policy_digest != self.head.policy_digest or not self._known:
            await self._bus.put_blob(policies)
        continues = self.head is not None and self._known and id.epoch == self.head.epoch and self._checkpoint is not None
        size = sum(len(k) + len(v) + 8 for k, v in upsert.items()) + sum(map(len, delete))
        inline = continues and size <= INLINE_BYTES
        if not inline:
            self._checkpoint = await write.write_checkpoint(self._bus, id.number, change.rows, digest.hex)
        self._digest_value = digest
        return Manifest(
            group=self._group,
            epoch=id.epoch,
            number=id.number,
            digest=content,
            policy_digest=policy_digest,
            tables_digest=digest.hex,
            rows=digest.rows,
            row_bytes=digest.row_bytes,
            parent=self.head.digest if self.head and self._known else "",
            delta=read.as_delta(upsert, delete) if inline else None,
            checkpoint=self._checkpoint,
            covers=change.covers,
            causes=tuple(change.causes[:CAUSES_SHOWN]),
            cause_count=len(change.causes),
            pinned=pinned,
            compiled_at=change.compiled_at,
            committed_at=time.time(),
            trace=change.trace,
            note=change.note,
        )

    async def _digest(self) -> TableDigest:
        value = self._digest_value
        if value is None or self.head is None or value.hex != self.head.tables_digest:
            value = read.digest_of(self._rows)
        return value

    async def _write_checkpoint(self, manifest: Manifest, rows: dict[str, bytes]) -> None:
        try:
            checkpoint = await write.write_checkpoint(self._bus, manifest.number, rows, manifest.tables_digest)
            if self.head is not None and self.head.epoch == manifest.epoch:
                self._checkpoint = checkpoint
            await self._collect()
        except (BusUnavailable, TimeoutError) as error:
            log.warning("no checkpoint this time", error=error)

    async def _collect(self) -> None:
        """Delete blobs that were not needed the last time either: another compiler may be about to refer to a new one."""
        needed = write.needed_blobs(await read.stored(self._bus, self._group))
        if self._checkpoint is not None:
            needed.update(self._checkpoint.shards)
        unneeded = await self._bus.list_blobs() - needed
        for digest in unneeded & self._stale:
            await self._bus.delete_blob(digest)
        self._stale = unneeded
