"""The wanted state of every object in; on the CLUSTER stream, only what differs from what it holds already, then a sync mark.

The publisher knows the digest of every object in the stream: read once at the start, read again when the stream was reset, when a
sequence runs backwards, or when someone asks for a resync. While the bus is away it keeps nothing but the wanted state, so an object that
changes a thousand times is published once.

A mark follows each batch, in the same pipeline: whoever reads the stream to its end finds a mark that agrees with it, even if this
process is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from services.shared.bus.port import Message, TooLarge
from services.shared.contracts import subjects
from services.shared.contracts.delta import Delta, KindState, SyncMark, decode_delta, decode_sync_mark, encode_delta, object_digest
from services.shared.contracts.objects import KINDS, AnyObject, Key
from services.shared.contracts.problem import Problem, Reason
from services.shared.sealing.material import open_delta, seal_delta
from services.shared.sealing.ring import CannotOpen, CannotSeal, KeyRing
from services.shared.telemetry.logs import get_logger
from services.watcher.changes import ObjectChanges
from services.watcher.tracing import ChangeTrace

log = get_logger(__name__)

BATCH: Final = 512
"""Messages in one pipeline."""
MAX_DELTA_BYTES: Final = 4 << 20
"""Half of our servers' `max_payload`. The largest legal object has 1.5 MiB, and a sealed Secret of that size 2.7. With a server that
takes less (1 MiB is its default) the limit goes down to that."""

_RANK: Final = {kind: rank for rank, kind in enumerate(KINDS)}
_KIND_OF_TOKEN: Final = {kind.lower(): kind for kind in KINDS}

Wire = tuple[str, bytes, Mapping[str, str] | None]


class _Outgoing(Struct, kw_only=True):
    """One delta on its way."""

    key: Key
    message: Wire
    before: int | None
    """The digest that the stream holds before it (None: no object), and after it."""
    after: int | None


class Store(Protocol):
    """The part of a bus that is needed here."""

    async def history(self, stream: str, subject: str, *, after: int = 0, limit: int = 0) -> list[Message]: ...

    async def publish_many(self, messages: list[Wire]) -> int: ...


class _Pending(Struct, kw_only=True):
    """An object whose wanted state may differ from the stream's."""

    observed_at: float
    trace: ChangeTrace | None = None


class Publisher:
    """See the module. The caller holds one lock around all of it."""

    def __init__(self, bus: Store, ring: KeyRing, *, max_delta_bytes: int = MAX_DELTA_BYTES) -> None:
        """`ring`: what Secrets are sealed with; its keys may be replaced at any time."""
        self._bus = bus
        self._ring = ring
        self._sealing = ring.current
        self._max_delta_bytes = max_delta_bytes
        self._wanted: dict[Key, AnyObject] = {}
        self._stored: dict[Key, int] = {}
        self._sums: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._unsure: set[Key] = set()
        self._sent_meanwhile: set[Key] | None = None
        self._pending: dict[Key, _Pending] = {}
        self._refused: dict[Key, Problem] = {}
        self._marked = False
        """True: the newest mark in the stream agrees with it."""
        self.epoch = 0
        self.sequence = 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Objects too large for the bus; the last form that was not is in effect."""
        return tuple(self._refused[key] for key in sorted(self._refused))

    @property
    def counts(self) -> dict[str, int]:
        """Objects published, by kind."""
        return {kind: count for kind, count in self._counts.items() if count}

    @property
    def settled(self) -> bool:
        """Everything wanted is in the stream, and so is a mark that says so."""
        return not self._pending and self._marked

    # --- what the stream holds

    async def read(self) -> dict[Key, AnyObject]:
        """Learn what the stream holds (again), and return it. Raises BusUnavailable."""
        return await self._absorb(await self._history())

    async def verify(self, lock: asyncio.Lock) -> None:
        """As `read`, but without the caller's lock while the stream is read and decoded: that takes seconds at 30,000 objects.

        What is published meanwhile counts as it was published. Raises BusUnavailable.
        """
        sent: set[Key] = set()
        self._sent_meanwhile = sent
        try:
            messages = await self._history()
            decoded = await _decode(messages, self._ring)
            async with lock:
                await self._absorb(messages, decoded, keep=sent)
        finally:
            self._sent_meanwhile = None

    async def _history(self) -> list[Message]:
        return await self._bus.history(subjects.CLUSTER_STREAM, subjects.CLUSTER_SUBJECTS)

    async def _absorb(
        self, messages: list[Message], decoded: _Decoded | None = None, *, keep: Collection[Key] = frozenset()
    ) -> dict[Key, AnyObject]:
        """Take over what the stream holds, except for the objects in `keep`."""
        decoded = decoded or await _decode(messages, self._ring)
        kept = {key: self._stored[key] for key in keep if key in self._stored}
        self._unsure = (self._unsure & set(keep)) | (decoded.unreadable - set(keep))
        self._stored, self._sums, self._counts = {}, dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        for key, digest in {**{k: d for k, (d, _) in decoded.objects.items() if k not in keep}, **kept}.items():
            self._store(key, digest)
        self._marked = False
        if not keep:
            self.sequence = messages[-1].sequence if messages else 0
        if self.epoch <= 0 or decoded.epoch > self.epoch:
            self.epoch = decoded.epoch + 1  # a new leadership, or another's after ours began
        now = time.time()
        for key in self._wanted.keys() | self._stored.keys() | self._unsure:
            self._pending.setdefault(key, _Pending(observed_at=now))
        return {key: obj for key, (_, obj) in decoded.objects.items()}

    def _store(self, key: Key, digest: int | None) -> None:
        """Account for what the stream holds of one object now; None: nothing."""
        old = self._stored.pop(key, None)
        if old is not None:
            self._sums[key.kind] -= old
            self._counts[key.kind] -= 1
        if digest is not None:
            self._stored[key] = digest
            self._sums[key.kind] += digest
            self._counts[key.kind] += 1

    # --- what it should hold

    def want(self, changes: ObjectChanges, *, observed_at: float, traces: Mapping[Key, ChangeTrace] | None = None) -> None:
        """Take over the newest state of some objects. Nothing is sent before `flush`."""
        for key, obj in changes.items():
            if obj is None:
                self._wanted.pop(key, None)
            else:
                self._wanted[key] = obj
            self._pending[key] = _Pending(observed_at=observed_at, trace=traces.get(key) if traces else None)

    async def flush(self, *, mark: bool = False) -> None:
        """Publish what differs, then the mark (`mark`: also when nothing differs).

        Raises BusUnavailable (call again) and StreamWentBack (`read`, then call again).
        """
        self._seal_anew()
        while True:
            outgoing = [o for key in sorted(self._pending, key=self._order) if (o := self._compare(key))]
            try:
                for start in range(0, len(outgoing), BATCH):
                    await self._send(outgoing[start : start + BATCH], last=start + BATCH >= len(outgoing))
            except TooLarge:
                continue  # with a lower limit
            if not self._marked or (mark and not outgoing):
                await self._publish([self._mark()])
                self._marked = True
            return

    def _seal_anew(self) -> None:
        """Another key seals now: the stream's Secrets are sealed with it."""
        if self._ring.current == self._sealing:
            return
        self._sealing = self._ring.current
        log.info("sealing Secrets anew", key=self._sealing)
        now = time.time()
        for key in self._wanted:
            if key.kind == "Secret":
                self._unsure.add(key)
                self._pending.setdefault(key, _Pending(observed_at=now))

    def _order(self, key: Key) -> tuple[int, int, Key]:
        """First what is referenced, then what refers to it; deletions last and the other way round."""
        rank = _RANK[key.kind]
        return (0, rank, key) if key in self._wanted else (1, -rank, key)

    def _compare(self, key: Key) -> _Outgoing | None:
        """The delta for one pending object; None: the stream holds it already, or it cannot go there."""
        self._refused.pop(key, None)
        obj, stored = self._wanted.get(key), self._stored.get(key)
        digest = object_digest(obj) if obj is not None else None
        if digest == stored and key not in self._unsure:
            del self._pending[key]
            return None
        try:
            payload = self._encode(key, obj)
        except CannotSeal as error:
            self._refused[key] = Problem(reason=Reason.INVALID_OBJECT, field="data", message=f"is not published: {error}", object=str(key))
            return None
        if len(payload) > self._max_delta_bytes:
            self._refused[key] = _too_large(key, len(payload), self._max_delta_bytes)
            del self._pending[key]
            return None
        trace = self._pending[key].trace
        wire = (subjects.cluster_subject(key.kind, key.namespace, key.name), payload, trace.headers if trace else None)
        return _Outgoing(key=key, message=wire, before=stored, after=digest)

    def _encode(self, key: Key, obj: AnyObject | None) -> bytes:
        delta = Delta(
            op="delete" if obj is None else "upsert",
            kind=key.kind,
            namespace=key.namespace,
            name=key.name,
            epoch=self.epoch,
            uid=obj.metadata.uid if obj is not None else "",
            resource_version=obj.metadata.resource_version if obj is not None else "",
            object=obj,
            observed_at=self._pending[key].observed_at,
            published_at=time.time(),
        )
        return encode_delta(seal_delta(delta, self._ring))

    async def _send(self, batch: list[_Outgoing], *, last: bool) -> None:
        """One pipeline; the mark rides at the end of the last one."""
        self._marked = False
        unsure = self._unsure & {out.key for out in batch}
        for out in batch:
            # Until the acknowledgement either state may be the stored one. The sums already say what the mark must.
            self._unsure.add(out.key)
            self._store(out.key, out.after)
            if self._sent_meanwhile is not None:
                self._sent_meanwhile.add(out.key)
        messages = [out.message for out in batch]
        try:
            await self._publish([*messages, self._mark()] if last else messages)
        except TooLarge:
            self._lower_limit(batch, unsure)
            raise
        for trace in {id(t): t for out in batch if (t := self._pending[out.key].trace)}.values():
            trace.published(self.sequence)
        for out in batch:
            self._unsure.discard(out.key)
            del self._pending[out.key]
        self._marked = last

    def _lower_limit(self, batch: list[_Outgoing], unsure: set[Key]) -> None:
        """This server takes less than we thought: the largest of these, for one, cannot have been stored."""
        self._max_delta_bytes = max(len(out.message[1]) for out in batch) - 1
        for out in batch:
            self._store(out.key, out.before)  # all of them are compared and sent again
            if len(out.message[1]) > self._max_delta_bytes and out.key not in unsure:
                self._unsure.discard(out.key)

    async def _publish(self, messages: list[Wire]) -> None:
        sequence = await self._bus.publish_many(messages)
        if sequence <= self.sequence:
            raise StreamWentBack
        self.sequence = sequence

    # --- the mark

    def _kinds(self) -> dict[str, KindState]:
        return {kind: KindState(count=self._counts[kind], digest=f"{self._sums[kind] % (1 << 256):064x}") for kind in KINDS}

    def _mark(self) -> Wire:
        mark = SyncMark(epoch=self.epoch, kinds=self._kinds(), at=time.time())
        return subjects.SYNC_SUBJECT, msgspec.json.encode(mark), None


class StreamWentBack(Exception):
    """An acknowledgement has a sequence that the stream had before: it was lost or put back. Read it again."""


class _Decoded(Struct, kw_only=True):
    """What a reading of the stream says."""

    objects: dict[Key, tuple[int, AnyObject]] = {}
    """With their digests."""
    unreadable: set[Key] = set()
    """Objects whose message is not a delta."""
    epoch: int = 0
    """The highest."""


async def _decode(messages: list[Message], ring: KeyRing) -> _Decoded:
    """In slices, so that heartbeats and answers go on meanwhile."""
    found = _Decoded()
    for number, message in enumerate(messages):
        if number % 200 == 199:
            await asyncio.sleep(0)
        if message.subject == subjects.SYNC_SUBJECT:
            found.epoch = max(found.epoch, _epoch_of_mark(message))
            continue
        try:
            delta = open_delta(decode_delta(message.payload), ring)
        except (msgspec.MsgspecError, RecursionError, CannotOpen) as error:
            log.warning("a message in the stream is not a delta, or cannot be opened", subject=message.subject, error=error)
            if (key := _key_of_subject(message.subject)) is not None:
                found.unreadable.add(key)
            continue
        found.epoch = max(found.epoch, delta.epoch)
        if delta.object is not None:
            found.objects[delta.key] = object_digest(delta.object), delta.object
    return found


def _epoch_of_mark(message: Message) -> int:
    try:
        return decode_sync_mark(message.payload).epoch
    except (msgspec.MsgspecError, RecursionError):
        return 0


def _key_of_subject(subject: str) -> Key | None:
    try:
        _, _, kind, namespace, name = subject.split(".")
        return Key(_KIND_OF_TOKEN[kind], subjects.untoken(namespace), subjects.untoken(name))
    except (ValueError, KeyError):
        return None


def _too_large(key: Key, size: int, limit: int) -> Problem:
    return Problem(
        reason=Reason.TOO_LARGE,
        field="metadata.name",
        message=f"has {size} bytes, more than the {limit} that the bus takes: split it, or raise nats-server's max_payload; "
        "its last smaller form, if any, stays in effect",
        object=str(key),
    )
