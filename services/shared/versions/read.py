"""Reading versions: the nearest checkpoint at or before, and the deltas up to it; what comes out is proved by its digest."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import msgspec

from services.shared.bus.port import Bus, Message
from services.shared.contracts.subjects import CONFIG_STREAM, VERSIONS_KEPT, config_subject
from services.shared.contracts.version import (
    Checkpoint,
    Manifest,
    PolicyBundle,
    TableDelta,
    TableDigest,
    decode_bundle,
    decode_manifest,
    decode_shard,
)
from services.shared.sealing.material import is_secret, open_row, seal_row
from services.shared.sealing.ring import CannotOpen, KeyRing
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)


class Unreadable(Exception):
    """A version's content is not there, or is not what its digest says. The message says which part."""


def manifest_of(message: Message) -> Manifest | None:
    """None: these bytes are no manifest; whoever wrote them must not stop anybody who reads."""
    try:
        return decode_manifest(message.payload)
    except (msgspec.DecodeError, RecursionError) as error:
        log.error("a stored version cannot be decoded", subject=message.subject, sequence=message.sequence, error=error)
        return None


async def stored(bus: Bus, group: str, *, after: int = 0) -> list[Manifest]:
    """Every manifest that the stream still holds, `after` a sequence, oldest first; more than `history` shows."""
    messages = await bus.history(CONFIG_STREAM, config_subject(group), after=after)
    return [m for m in map(manifest_of, messages) if m is not None]


def kept(manifests: Sequence[Manifest]) -> Sequence[Manifest]:
    """Of the stored ones, those that can be shown, compared and rolled back to; the older ones only carry deltas for them."""
    return manifests[-VERSIONS_KEPT:]


async def history(bus: Bus, group: str) -> list[Manifest]:
    """The versions that can be shown, compared and rolled back to, oldest first."""
    return list(kept(await stored(bus, group)))


def find(manifests: Sequence[Manifest], number: int, epoch: int = 0) -> Manifest:
    """The kept version of this number; `epoch` 0: the newest epoch's. Raises Unreadable."""
    shown = kept(manifests)
    found = next((m for m in reversed(shown) if m.number == number and epoch in (0, m.epoch)), None)
    if found is None:
        wanted, names = (f"{epoch}.{number}", [str(m.id) for m in shown]) if epoch else (str(number), [str(m.number) for m in shown])
        raise Unreadable(f"version {wanted} is not kept; {f'{names[0]} to {names[-1]} are' if names else 'none is'}")
    return found


def before(manifests: Sequence[Manifest], version: Manifest) -> Manifest:
    """The version before a kept one. Raises Unreadable."""
    shown = kept(manifests)
    at = shown.index(version)
    if at == 0:
        raise Unreadable(f"version {version.id} is the oldest that is kept: there is none before it to compare it with")
    return shown[at - 1]


async def head(bus: Bus, group: str) -> tuple[Manifest, int] | None:
    """The newest manifest and its stream sequence; None: there is none yet. Raises Unreadable."""
    message = await bus.last(CONFIG_STREAM, config_subject(group))
    if message is None:
        return None
    manifest = manifest_of(message)
    if manifest is None:
        raise Unreadable("the newest version cannot be decoded; the compiler's next one replaces it")
    return manifest, message.sequence


async def bundle_of(bus: Bus, manifest: Manifest) -> PolicyBundle:
    """Raises Unreadable."""
    data = await bus.get_blob(manifest.policy_digest)
    if data is None:
        raise Unreadable(f"the policies of version {manifest.id} ({manifest.policy_digest[:12]}) are not stored")
    return decode_bundle(data)


async def rows_of(bus: Bus, manifest: Manifest, manifests: Sequence[Manifest], ring: KeyRing | None) -> dict[str, bytes]:
    """All rows of one version. `manifests`: what is stored of its group (`stored`). Raises Unreadable.

    Without a ring the rows with keys and passwords stay sealed, and the digest of such rows is not proved: for comparing only.
    """
    checkpoint = manifest.checkpoint
    if checkpoint is None:
        raise Unreadable(f"version {manifest.id} names no checkpoint")
    rows = await checkpoint_rows(bus, checkpoint, ring)
    between = {m.number: m for m in manifests if m.epoch == manifest.epoch and checkpoint.number < m.number <= manifest.number}
    between[manifest.number] = manifest
    for number in range(checkpoint.number + 1, manifest.number + 1):
        step = between.get(number)
        if step is None or step.delta is None:
            raise Unreadable(f"version {manifest.epoch}.{number}, between checkpoint and version {manifest.id}, is not stored")
        apply_delta(rows, step.delta, ring)
    if (checkpoint.number, checkpoint.tables_digest) != (manifest.number, manifest.tables_digest):  # else that is proved already
        prove(rows, manifest.tables_digest, f"version {manifest.id}", ring)
    return rows


async def newest_rows(bus: Bus, manifest: Manifest, ring: KeyRing) -> dict[str, bytes]:
    """All rows of a version that is (nearly) the newest: only what follows its checkpoint is read. Raises Unreadable."""
    if manifest.delta is None:
        return await rows_of(bus, manifest, (), ring)  # it is its own checkpoint
    after = manifest.checkpoint.after if manifest.checkpoint is not None else 0
    if after:
        with contextlib.suppress(Unreadable):  # a stream that was made anew counts otherwise
            return await rows_of(bus, manifest, await stored(bus, manifest.group, after=after), ring)
    return await rows_of(bus, manifest, await stored(bus, manifest.group), ring)


async def checkpoint_rows(bus: Bus, checkpoint: Checkpoint, ring: KeyRing | None) -> dict[str, bytes]:
    """Raises Unreadable."""
    rows: dict[str, bytes] = {}
    for digest in checkpoint.shards:
        data = await bus.get_blob(digest)
        if data is None:
            raise Unreadable(f"shard {digest[:12]} of checkpoint {checkpoint.number} is not stored")
        rows.update(opened(decode_shard(data), ring))
    prove(rows, checkpoint.tables_digest, f"checkpoint {checkpoint.number}", ring)
    return rows


def opened(upsert: Mapping[str, msgspec.Raw], ring: KeyRing | None) -> dict[str, bytes]:
    """Rows as they are, from rows as they travel. Raises Unreadable."""
    rows: dict[str, bytes] = {}
    for key, raw in upsert.items():
        try:
            rows[key] = open_row(key, bytes(raw), ring)
        except CannotOpen as error:
            raise Unreadable(f"row {key[:12]} cannot be opened: {error}") from error
    return rows


def apply_delta(rows: dict[str, bytes], delta: TableDelta, ring: KeyRing | None) -> None:
    """Raises Unreadable; nothing has changed then."""
    upsert = opened(delta.upsert, ring)
    for key in delta.delete:
        rows.pop(key, None)
    rows.update(upsert)


def digest_of(rows: dict[str, bytes]) -> TableDigest:
    digest = TableDigest()
    for key, row in rows.items():
        digest.add(key, row)
    return digest


def prove(rows: dict[str, bytes], tables_digest: str, what: str, ring: KeyRing | None) -> None:
    """Raises Unreadable."""
    if ring is None and any(map(is_secret, rows)):
        return
    found = digest_of(rows).hex
    if found != tables_digest:
        raise Unreadable(f"the rows of {what} have digest {found[:12]}, not {tables_digest[:12]}")


def as_delta(upsert: dict[str, bytes], delete: tuple[str, ...], ring: KeyRing) -> TableDelta:
    """As it travels. Raises CannotSeal."""
    return TableDelta(upsert={k: msgspec.Raw(seal_row(k, v, ring)) for k, v in upsert.items()}, delete=delete)


def difference(before: dict[str, bytes], after: dict[str, bytes]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """(rows to upsert, keys to delete) that make `after` out of `before`."""
    upsert = {k: v for k, v in after.items() if before.get(k) != v}
    return upsert, tuple(sorted(before.keys() - after.keys()))
