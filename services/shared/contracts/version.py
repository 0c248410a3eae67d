"""Versions (compiler -> applier): numbered, content-addressed configurations for one group of nodes.

A version is a set of policies (nginx text, named by hash) and a set of table rows (key -> JSON). Its digest depends on nothing
else: not on numbers, times or the order in which changes arrived. Rows travel as inline deltas from version to version; a
checkpoint, written now and then as blobs, holds all rows of one version, so that a node that has missed something starts there.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
from msgspec import Raw, Struct

ORDER = 1 << 256
OPTIONAL_SCOPES = frozenset({"stream"})
"""Global scopes that a bundle may lack: nginx runs without, where nothing of the scope is wanted or taken."""


class VersionId(Struct, frozen=True, order=True):
    """What orders versions. An applier accepts only a strictly greater one."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


class Policy(Struct, frozen=True, kw_only=True):
    """One piece of nginx text, the same on every node.

    `main`, `events`, `http`, `server`: directives of that context (global settings, zones, upstreams); exactly one of each in a bundle.
    `stream`: the listeners of TCP and UDP services, and what goes with them; none in a bundle without such services.
    `location`: the directives inside `location @p_<hash> { }`; the node writes the block around them.
    """

    hash: str
    """First 16 hex digits of sha256 over scope, NUL and text: `policy_hash`."""
    scope: Literal["main", "events", "http", "server", "stream", "location"]
    text: str
    snippet: bool = False
    """Contains a tenant's own directives, which the administrator allowed."""


class PolicyBundle(Struct, frozen=True, kw_only=True):
    """All policies of a version, sorted by (scope, hash). A blob: `bundle_digest` is the sha256 of these bytes."""

    policies: tuple[Policy, ...]


class TableDelta(Struct, frozen=True, kw_only=True):
    """The rows that differ from the parent version's."""

    upsert: dict[str, Raw] = {}
    """Key -> the row's JSON, byte for byte."""
    delete: tuple[str, ...] = ()


class Checkpoint(Struct, frozen=True, kw_only=True):
    """All rows of version `number`, in blobs of a bounded size; each blob is a JSON object key -> row."""

    number: int
    tables_digest: str
    shards: tuple[str, ...]
    """sha256 of each blob. Rows are placed by a hash of their key, so that unchanged shards keep their digest."""
    after: int = 0
    """Up to this sequence of the CONFIG stream a reader needs no deltas to follow it; 0: unknown."""


class Cause(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object whose change is in this version."""

    kind: str
    namespace: str
    name: str
    op: Literal["upsert", "delete"]
    resource_version: str = ""
    observed_at: float = 0.0
    published_at: float = 0.0
    trace: str = ""
    """W3C traceparent of the delta."""


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version. Publishing it, with compare-and-set on the subject's last sequence, is the only commit point."""

    group: str
    epoch: int
    number: int
    digest: str
    """`version_digest(policy_digest, tables_digest)`: the whole content, whatever its number."""
    policy_digest: str
    tables_digest: str
    rows: int
    """How many rows the version has."""
    row_bytes: int
    """Sum of the lengths of keys and rows, for sizing shared memory."""
    parent: str = ""
    """The digest of the version before it; empty: none."""
    delta: TableDelta | None = None
    """None: too large to travel inline; `checkpoint.number == number` then."""
    checkpoint: Checkpoint | None = None
    """The newest complete copy of rows at or before this version."""
    covers: int = 0
    """The CLUSTER stream sequence up to which changes are in this version."""
    causes: tuple[Cause, ...] = ()
    """At most 100; `cause_count` has the full number."""
    cause_count: int = 0
    pinned: int = 0
    """Not 0: a rollback to the content of that version; live changes wait until it is released."""
    staged: bool = False
    """Its new policies are installed as the group's gate (`rollout.Gate`) lets a node in; False: at once."""
    nodes: int = 1
    """Of the group, about: they spread their reports, so as not to be in each other's way."""
    compiled_at: float = 0.0
    committed_at: float = 0.0
    """Just before publishing, unix seconds."""
    trace: str = ""
    note: str = ""
    """Why, where it is not a change of objects: `rollback to 17`, `release`, `epoch raised: ...`."""

    @property
    def id(self) -> VersionId:
        return VersionId(self.epoch, self.number)


class TableDigest:
    """The digest of a set of rows, kept up to date row by row: the sum of row hashes modulo 2^256.

    It detects loss, reordering and corruption; it does not authenticate (see docs/decisions/0002).
    """

    def __init__(self, value: int = 0, rows: int = 0, row_bytes: int = 0) -> None:
        self.value = value
        self.rows = rows
        self.row_bytes = row_bytes

    @staticmethod
    def _of(key: str, row: bytes) -> int:
        k = key.encode()
        return int.from_bytes(hashlib.sha256(len(k).to_bytes(4, "big") + k + row).digest(), "big")

    def add(self, key: str, row: bytes) -> None:
        self.value = (self.value + self._of(key, row)) % ORDER
        self.rows += 1
        self.row_bytes += len(key) + len(row)

    def remove(self, key: str, row: bytes) -> None:
        self.value = (self.value - self._of(key, row)) % ORDER
        self.rows -= 1
        self.row_bytes -= len(key) + len(row)

    def copy(self) -> TableDigest:
        return TableDigest(self.value, self.rows, self.row_bytes)

    @property
    def hex(self) -> str:
        return f"{self.value:064x}"


def policy_hash(scope: str, text: str) -> str:
    return hashlib.sha256(scope.encode() + b"\0" + text.encode()).hexdigest()[:16]


def bundle_digest(bundle: PolicyBundle) -> str:
    return hashlib.sha256(msgspec.json.encode(bundle)).hexdigest()


def version_digest(policy_digest: str, tables_digest: str) -> str:
    return hashlib.sha256(f"{policy_digest} {tables_digest}".encode()).hexdigest()


encode_manifest = msgspec.json.Encoder().encode
decode_manifest = msgspec.json.Decoder(Manifest).decode
decode_bundle = msgspec.json.Decoder(PolicyBundle).decode
decode_shard = msgspec.json.Decoder(dict[str, Raw]).decode
