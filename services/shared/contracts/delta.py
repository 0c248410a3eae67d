"""Deltas (watcher -> compiler): one changed object each, and the sync mark that says the picture is complete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from services.shared.contracts.objects import AnyObject, Key


class Delta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latest state of one object, on `subjects.cluster_subject`; compacted, so it must stand alone."""

    op: Literal["upsert", "delete"]
    kind: str
    namespace: str
    name: str
    epoch: int
    """Which watcher leadership published it; grows with each one."""
    uid: str = ""
    resource_version: str = ""
    object: AnyObject | None = None
    """None: a tombstone (`op` is delete)."""
    observed_at: float = 0.0
    """Unix seconds at which the source saw the change."""
    published_at: float = 0.0

    @property
    def key(self) -> Key:
        return Key(self.kind, self.namespace, self.name)


class KindState(Struct, frozen=True, kw_only=True):
    """What the source holds of one kind: how many objects, and `set_digest` over them."""

    count: int
    digest: str


class SyncMark(Struct, frozen=True, kw_only=True):
    """Every kind has been listed in this epoch and published before this message (`subjects.SYNC_SUBJECT`).

    A compiler publishes nothing before it has seen one and its world agrees with it. It is repeated periodically: a world that
    does not agree with the newest mark asks for a resync (anti-entropy).
    """

    epoch: int
    kinds: dict[str, KindState]
    at: float = 0.0


def object_digest(obj: AnyObject) -> int:
    """A 256-bit number for one object's whole content."""
    return int.from_bytes(hashlib.sha256(msgspec.json.encode(obj, order="deterministic")).digest(), "big")


def set_digest(digests: Iterable[int]) -> str:
    """One digest for a set of objects, whatever their order: the sum of their digests modulo 2^256, in hex."""
    return f"{sum(digests) % (1 << 256):064x}"


encode_delta = msgspec.json.Encoder(order="deterministic").encode
decode_delta = msgspec.json.Decoder(Delta).decode
decode_sync_mark = msgspec.json.Decoder(SyncMark).decode
