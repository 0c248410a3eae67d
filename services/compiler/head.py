"""The head of one group's versions: what the stream says of it, what nodes say, the rows it has, and the rollback that may hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from services.compiler.checkpoints import Checkpoints
from services.shared.bus.port import Bus
from services.shared.contracts.subjects import CONFIG_STREAM, config_subject
from services.shared.contracts.version import Manifest, PolicyBundle, TableDigest, VersionId
from services.shared.sealing.ring import KeyRing
from services.shared.telemetry.logs import get_logger
from services.shared.versions import read
from services.shared.versions.replica import NOTHING, Replica

log = get_logger(__name__)

BELIEVABLE: Final = 1 << 48
"""Epochs and numbers beyond this were not counted by anyone; JSON readers lose precision at 2^53."""


class Pin(Struct, frozen=True):
    """A rollback: this content stays, also where the stream loses it."""

    number: int
    rows: dict[str, bytes]
    bundle: PolicyBundle


class Served(Struct, frozen=True, kw_only=True):
    """The newest version: what nodes serve, or are about to."""

    version: str
    """`epoch.number`; empty: the stream has lost it, the rollback stands."""
    pinned: int
    """The version that a rollback holds; 0: none."""
    rows: Mapping[str, bytes] | None
    """None: they cannot be read."""
    bundle: PolicyBundle | None
    """The policies, where they may be others than the compiler's own."""


class Head:
    """Taken from the stream when there is doubt, moved by what is committed here."""

    def __init__(self, bus: Bus, group: str, checkpoints: Checkpoints, ring: KeyRing) -> None:
        self._ring = ring
        self._bus = bus
        self._group = group
        self._checkpoints = checkpoints
        self.manifest: Manifest | None = None
        """Another object whenever it is another version."""
        self.sequence = 0
        """In the stream; 0: there is none."""
        self.held = Replica(self._ring)
        """The manifest's rows."""
        self.known = False
        """Whether `held` really are they; otherwise the next version is written whole, in a new epoch."""
        self.pin: Pin | None = None
        self.seen = NOTHING
        """The greatest version ever seen, here or in a node's report."""
        self._doubt = True
        """Whether the stream may have another head."""
        self._noted = 0
        """The greatest sequence that was heard of."""
        self._expected: tuple[VersionId, str] | None = None
        """A version that is being published: nodes may have it before this compiler hears that it is stored."""
        self._contradiction: tuple[VersionId, str] | None = None
        """What a node has under the head's number: other content."""

    # --- what it hears

    def note_node(self, id: VersionId, digest: str) -> bool:
        """A node reports a version; True: it is ahead of the head or contradicts it, unless the head is another one by now."""
        if not (0 < id.epoch < BELIEVABLE and 0 <= id.number < BELIEVABLE):
            return False
        self.seen = max(self.seen, id)
        head = self.manifest
        if self._expected is not None and id == self._expected[0] and digest in ("", self._expected[1]):
            return False
        if head is None or id < head.id or (id == head.id and digest in ("", head.digest)):
            return False
        self._contradiction = (id, digest)
        self._doubt = True
        return True

    def expect(self, manifest: Manifest) -> None:
        """It is about to be published. If that fails, distrust."""
        self._expected = manifest.id, manifest.digest

    def note_sequence(self, sequence: int) -> bool:
        """The stream has a version at this sequence; True: it is not the one that is known."""
        self._noted = max(self._noted, sequence)
        return self._noted > self.sequence

    def distrust(self) -> None:
        """Look again before the next commit."""
        self._doubt = True
        self._expected = None

    def lost_blobs(self) -> None:
        """The store no longer has all that the head needs."""
        self.known = False

    # --- what it is

    @property
    def doubtful(self) -> bool:
        return self._doubt or self._noted > self.sequence

    @property
    def broken(self) -> str:
        """Why the next version cannot follow this one in its epoch; empty: it can."""
        head = self.manifest
        if head is None:
            return "there was no version"
        if not self.known:
            return f"version {head.id} could not be read"
        if self.seen > head.id:
            return f"version {self.seen} was seen, {head.id} was the newest"
        if self._contradiction is not None and self._contradiction[0] == head.id and self._contradiction[1] != head.digest:
            return f"a node had other content as version {head.id}"
        return ""

    @property
    def next_id(self) -> VersionId:
        if self.manifest is not None and not self.broken:
            return VersionId(self.manifest.epoch, self.manifest.number + 1)
        return VersionId(self.seen.epoch + 1, self.seen.number + 1)

    @property
    def pinned(self) -> int:
        """The version that a rollback holds; 0: none."""
        if self.pin is not None:
            return self.pin.number
        return self.manifest.pinned if self.manifest is not None else 0

    @property
    def pin_stands(self) -> bool:
        """Whether the rollback needs nothing: the stream has it, or its content cannot be had."""
        return self.pin is None or (not self.broken and self.manifest is not None and self.manifest.pinned == self.pin.number)

    @property
    def served(self) -> Served | None:
        """None: there is nothing to serve yet."""
        head, pin = self.manifest, self.pin
        if head is None and pin is None:
            return None
        rows = self.held.rows if self.known else pin.rows if pin is not None else None
        return Served(version=str(head.id) if head else "", pinned=self.pinned, rows=rows, bundle=pin.bundle if pin else None)

    # --- how it moves

    async def look(self) -> None:
        """Settle any doubt. Raises what the bus raises."""
        if not self.doubtful:
            return
        message = await self._bus.last(CONFIG_STREAM, config_subject(self._group))
        manifest = read.manifest_of(message) if message is not None else None
        if message is None:
            self._lose()
        elif manifest is None:
            await self._skip_garbage()
        elif not (self.known and same(self.manifest, manifest)):
            await self._adopt(manifest)
        self.sequence = self._noted = message.sequence if message is not None else 0
        self._doubt = False

    def moved(self, manifest: Manifest, sequence: int, rows: dict[str, bytes], tables: TableDigest, bundle: PolicyBundle) -> None:
        """A version was committed here. `rows` are not kept by reference."""
        if manifest.delta is None or self.held.inline(manifest) is None:
            self.held = Replica(self._ring, manifest.id, manifest.digest, dict(rows), tables)
        self.manifest, self.sequence, self.known = manifest, sequence, True
        self._noted = max(self._noted, sequence)
        self.seen = max(self.seen, manifest.id)
        self.pin = Pin(manifest.pinned, self.held.rows, bundle) if manifest.pinned else None
        self._checkpoints.committed(manifest, sequence, self.held.rows)

    def _lose(self) -> None:
        if self.manifest is not None:
            log.warning("the versions are gone; a new epoch begins", last=self.manifest.id)
        self.manifest, self.held, self.known = None, Replica(self._ring), False
        self._checkpoints.adopt(None, same_history=False)

    async def _skip_garbage(self) -> None:
        """The newest message is no version: what follows it begins anew."""
        manifests = await read.stored(self._bus, self._group)
        self.manifest, self.held, self.known = (manifests[-1] if manifests else None), Replica(self._ring), False
        self.seen = max([self.seen, *(m.id for m in manifests)])
        self._checkpoints.adopt(None, same_history=False)

    async def _adopt(self, manifest: Manifest) -> None:
        """Another compiler's version is the head, or one of an earlier life."""
        before = self.manifest.id if self.manifest is not None else NOTHING
        if self.known and manifest.id > before and self.held.inline(manifest) is not None:
            self._checkpoints.adopt(manifest.checkpoint, same_history=True)
        else:
            await self._read(manifest)
        self.manifest = manifest
        self.seen = max(self.seen, manifest.id)
        if manifest.pinned:
            await self._adopt_pin(manifest)
        elif manifest.id > before:
            self.pin = None  # released; a stream that went back has released nothing

    async def _read(self, manifest: Manifest) -> None:
        self.known = False
        self._checkpoints.adopt(manifest.checkpoint, same_history=False)
        try:
            rows = await read.newest_rows(self._bus, manifest, self._ring)
        except read.Unreadable as error:
            self._cannot_read(manifest, error)
            return
        self.held = Replica(self._ring, manifest.id, manifest.digest, rows)
        self.known = True

    async def _adopt_pin(self, manifest: Manifest) -> None:
        try:
            bundle = await read.bundle_of(self._bus, manifest)
        except read.Unreadable as error:
            self._cannot_read(manifest, error)
            return
        if self.known:
            self.pin = Pin(manifest.pinned, self.held.rows, bundle)

    def _cannot_read(self, manifest: Manifest, error: read.Unreadable) -> None:
        log.warning("the head cannot be read; the next version is written whole", head=manifest.id, error=error)
        self.held, self.known = Replica(self._ring), False


def same(a: Manifest | None, b: Manifest) -> bool:
    return a is not None and (a.id, a.digest, a.committed_at) == (b.id, b.digest, b.committed_at)
