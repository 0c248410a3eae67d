"""Committing versions: compare-and-set on the subject's last sequence; the manifest is the only commit point.

Several compilers may commit. Who loses adopts the winner's version, if that covers as much of the cluster; else it goes on from there.
Numbers are never used again for other content: an epoch begins where the stream's history cannot be continued.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from services.compiler.checkpoints import Checkpoints
from services.compiler.head import Head, Served, same
from services.shared.bus.port import Bus, BusError, Conflict, TooLarge
from services.shared.contracts.report import decode_node_report
from services.shared.contracts.subjects import CLUSTER_STREAM, NODES_BUCKET, config_subject
from services.shared.contracts.version import (
    Cause,
    Manifest,
    PolicyBundle,
    TableDigest,
    VersionId,
    bundle_digest,
    encode_manifest,
    version_digest,
)
from services.shared.sealing.ring import KeyRing
from services.shared.telemetry.logs import get_logger
from services.shared.versions import read
from services.shared.versions.replica import NOTHING

log = get_logger(__name__)

INLINE_BYTES: Final = 256 * 1024
"""A larger delta travels as a checkpoint."""
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
    nodes: int = 0
    """How many of the group report; 0: as the head says."""
    compiled_at: float = 0.0
    trace: str = ""
    note: str = ""


class _Draft(Struct, frozen=True):
    manifest: Manifest
    tables: TableDigest


class Committer:
    """Moves the head of one group. One task at a time commits."""

    def __init__(self, bus: Bus, group: str, ring: KeyRing, *, staged: bool = False) -> None:
        """`ring`: the group's keys; they may be replaced at any time, see `seal_anew`. `staged`: of versions that are no rollback."""
        self._staged = staged
        self._bus = bus
        self._group = group
        self._ring = ring
        self.checkpoints = Checkpoints(bus, group, ring)
        self._head = Head(bus, group, self.checkpoints, ring)
        self._seal_anew = False
        self._stepwise = False
        """Whether the last Change's rows are the head's, so that its successor's upserts are enough."""
        self._settled = False
        """Whether nothing needs committing while the rows do not change."""
        self._insist = True
        """Whether the content must be this compiler's even where the head covers as much: at first, and from another engine."""
        self._engines = 0
        self._encoded: tuple[PolicyBundle, bytes, str] | None = None

    @property
    def head(self) -> Manifest | None:
        return self._head.manifest

    @property
    def pinned(self) -> int:
        """The version that a rollback holds; 0: none."""
        return self._head.pinned

    @property
    def served(self) -> Served | None:
        """The head with its rows; None: there is no version."""
        return self._head.served

    @property
    def settled(self) -> bool:
        """Whether nothing needs committing while the rows do not change."""
        return self._settled and not self._head.doubtful and not self._head.broken and not self._seal_anew

    # --- what it hears

    async def start(self) -> None:
        """Take up where the stream ends. Raises what the bus raises."""
        for value in (await self._bus.entries(NODES_BUCKET)).values():
            try:
                report = decode_node_report(value)
            except (msgspec.DecodeError, RecursionError) as error:
                log.error("a node's report could not be read", error=error)
                continue
            if report.group == self._group:
                self.note_node(VersionId(report.epoch, report.number), report.digest)
        await self._head.look()

    def note_node(self, id: VersionId, digest: str) -> bool:
        """A node reports a version; True: it is ahead of the head or contradicts it, unless the head is another one by now."""
        return self._head.note_node(id, digest)

    def note_head(self, sequence: int) -> bool:
        """The stream has a version at this sequence; True: it is not the one that is known."""
        return self._head.note_sequence(sequence)

    def distrust(self) -> None:
        """The stream of versions was lost or went back."""
        self._head.distrust()

    def seal_anew(self) -> None:
        """Another key seals now: the next version is written whole, whether its content is the head's or not."""
        self._seal_anew = True

    def another_engine(self) -> None:
        """The next Change does not follow the last one, which may be on its way."""
        self._engines += 1
        self._stepwise = self._settled = False
        self._insist = True

    async def audit(self) -> bool:
        """Whether the blobs that the head needs are stored. If not, the next commit stores all anew. Raises what the bus raises."""
        head = self.head
        if head is None or await self.checkpoints.complete(head):
            return True
        if head is self.head:
            log.warning("blobs of the head are missing; the next version is written whole", head=head.id)
            self._head.lost_blobs()
        return False

    # --- what it commits

    async def commit(self, change: Change) -> Manifest | None:
        """Commit, unless the content is the head's already or a rollback is pinned. Returns the new manifest; None: nothing to commit."""
        stepwise, self._stepwise, engine = self._stepwise, False, self._engines
        manifest, mine = await self._commit(change, None, stepwise)
        if engine == self._engines:
            self._note_step(mine)
        return manifest

    async def roll_back(self, number: int, epoch: int = 0) -> Manifest:
        """A version with the content of an old one (`epoch` 0: the newest of this number), pinned.

        Raises Unreadable, and what the bus raises.
        """
        manifests = await read.stored(self._bus, self._group)
        old = read.find(manifests, number, epoch)
        rows = await read.rows_of(self._bus, old, manifests, self._ring)
        bundle = await read.bundle_of(self._bus, old)
        covers = self.head.covers if self.head else 0
        change = Change(rows=rows, upsert={}, delete=(), bundle=bundle, covers=covers, note=f"rollback to {number}")
        self._stepwise = self._settled = False
        manifest, _ = await self._commit(change, number, stepwise=False)
        manifest = manifest or self.head
        if manifest is None or manifest.pinned != number:
            raise read.Unreadable(f"version {number} could not be committed")
        return manifest

    async def release(self, change: Change) -> Manifest | None:
        """End a rollback: commit the live content."""
        self._stepwise, self._settled, engine = False, False, self._engines
        manifest, mine = await self._commit(msgspec.structs.replace(change, note="release"), 0, stepwise=False)
        if engine == self._engines:
            self._note_step(mine)
        return manifest

    async def close(self) -> None:
        await self.checkpoints.close()

    def _note_step(self, mine: bool) -> None:
        """The head is this compiler's live content (`mine`), or another's that stands, or a rollback's."""
        self._stepwise = mine and not self.pinned
        self._insist = self._insist and not self._stepwise
        self._settled = self._stepwise or bool(self.pinned) or not self._insist

    async def _commit(self, change: Change, pinned: int | None, stepwise: bool) -> tuple[Manifest | None, bool]:
        """(the new manifest, whether the head's content is the change's). `pinned` None: live content, which gives way to a rollback."""
        before, delay, inline_bytes = self.head, 0.05, INLINE_BYTES
        tried: Manifest | None = None
        while True:
            try:
                await self._head.look()
                moved = self.head is not before
                if moved and tried is not None and same(self.head, tried):
                    return tried, True  # it was stored, only the acknowledgement was lost
                content, number, steps = change, pinned or 0, stepwise and not moved
                if pinned is None and self.pinned:
                    if self._head.pin is None or (self._head.pin_stands and not self._seal_anew):
                        return None, False
                    content, number, steps = _of_pin(self._head.pin.number, self._head.pin.rows, self._head.pin.bundle, change.covers)
                elif pinned is None and await self._yields(change, moved):
                    return None, False
                async with self.checkpoints.blobs:
                    draft = await self._prepare(content, number, steps, inline_bytes)
                    if draft is None:
                        return None, True
                    tried = draft.manifest
                    self._head.expect(tried)
                    sequence = await self._publish(tried)
                self._seal_anew = self._seal_anew and tried.delta is not None
                self._head.moved(tried, sequence, content.rows, draft.tables, content.bundle)
                return tried, True
            except Conflict:
                self._head.distrust()
            except TooLarge:
                if not inline_bytes:
                    raise
                inline_bytes = 0
            except BusError as error:
                log.warning("a version could not be committed yet", error=error)
                self._head.distrust()
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(delay * 2, 1.0)
                with contextlib.suppress(BusError):
                    await self._bus.ensure()

    async def _publish(self, manifest: Manifest) -> int:
        headers = {"traceparent": manifest.trace} if manifest.trace else None
        subject = config_subject(self._group)
        return await self._bus.publish(subject, encode_manifest(manifest), headers=headers, expected_last=self._head.sequence)

    async def _yields(self, change: Change, moved: bool) -> bool:
        """Whether the head of another compiler stands: it covers what this change does. What it does not, comes with the next change.

        Never a fight: two compilers that make different content of the same cluster (during an upgrade) take turns only with changes.
        """
        head = self.head
        if head is None or self._head.broken or head.covers < change.covers:
            return False
        if not self._insist:
            return moved or head.covers > change.covers
        # Sequences of a stream that was lost cannot be compared with those of its successor, which are smaller.
        return head.covers > change.covers and await self._bus.last_sequence(CLUSTER_STREAM) >= head.covers

    async def _prepare(self, change: Change, pinned: int, stepwise: bool, inline_bytes: int) -> _Draft | None:
        """The next version, its blobs stored; None: the head is it already."""
        head, broken = self.head, self._head.broken
        rows, tables = self._head.held.rows, self._head.held.tables
        upsert, delete = (change.upsert, change.delete) if stepwise else read.difference(rows, change.rows)
        for key in {*upsert, *delete} & rows.keys():
            tables.remove(key, rows[key])
        for key, row in upsert.items():
            tables.add(key, row)
        policies, policy_digest = self._encode(change.bundle)
        content = version_digest(policy_digest, tables.hex)
        anew = self._seal_anew
        if head is not None and not broken and not anew and content == head.digest and pinned == head.pinned:
            return None
        id = self._head.next_id
        self.checkpoints.use([policy_digest])
        if head is None or broken or policy_digest != head.policy_digest:
            await self._bus.put_blob(policies)
        size = sum(len(k) + len(v) + 8 for k, v in upsert.items()) + sum(map(len, delete))
        inline = not broken and not anew and size <= inline_bytes and self.checkpoints.carries(id.number)
        checkpoint = self.checkpoints.newest if inline else await self.checkpoints.write_now(id.number, change.rows, tables.hex)
        manifest = Manifest(
            group=self._group,
            epoch=id.epoch,
            number=id.number,
            digest=content,
            policy_digest=policy_digest,
            tables_digest=tables.hex,
            rows=tables.rows,
            row_bytes=tables.row_bytes,
            parent=head.digest if head is not None and self._head.known else "",
            delta=read.as_delta(upsert, delete, self._ring) if inline else None,
            checkpoint=checkpoint,
            covers=change.covers,
            causes=tuple(change.causes[:CAUSES_SHOWN]),
            cause_count=len(change.causes),
            pinned=pinned,
            staged=self._staged and not pinned,
            nodes=change.nodes or (head.nodes if head is not None else 1),
            compiled_at=change.compiled_at,
            committed_at=time.time(),
            trace=change.trace,
            note=_note(change.note, broken if self._head.seen > NOTHING else "", anew),
        )
        return _Draft(manifest, tables)

    def _encode(self, bundle: PolicyBundle) -> tuple[bytes, str]:
        if self._encoded is None or self._encoded[0] is not bundle:
            self._encoded = (bundle, msgspec.json.encode(bundle), bundle_digest(bundle))
        return self._encoded[1], self._encoded[2]


def _of_pin(number: int, rows: dict[str, bytes], bundle: PolicyBundle, covers: int) -> tuple[Change, int, bool]:
    """The content of a rollback that the stream has lost, to be committed again."""
    change = Change(rows=rows, upsert={}, delete=(), bundle=bundle, covers=covers, note=f"rollback to {number}")
    return change, number, False


def _note(said: str, broken: str, anew: bool) -> str:
    return "; ".join(filter(None, [said, f"epoch raised: {broken}" if broken else "", "sealed anew" if anew else ""]))
