"""Every NATS subject, its one writer, and how long what is published there is kept.

| subject                               | writer   | kept                                   | meaning                |
|---------------------------------------|----------|----------------------------------------|------------------------|
| `cluster.v1.<kind>.<ns>.<name>`       | watcher  | the last message of each subject       | latest state           |
| `cluster.v1.sync`                     | watcher  | the last message                       | latest state           |
| `config.v1.<group>`                   | compiler | the last `VERSIONS_STORED`             | every event counts     |
| `applied.v1.<node>`                   | applier  | the last 256 of each node              | every event counts     |
| bucket `nodes`, key `<node>`          | applier  | `NODE_REPORT_TTL_SECONDS`              | latest state           |
| bucket `verdicts`, key `<group>.<kind>.<ns>.<name>` | compiler | until replaced or deleted | latest state          |
| bucket `watchers`, key `<watcher id>` | watcher  | `NODE_REPORT_TTL_SECONDS`              | latest state           |
| bucket `identities`, key `<node>`     | applier  | until replaced                         | latest state           |
| bucket `keys`, key `<group>.<node>`   | compiler | until replaced or deleted              | latest state           |
| bucket `rollouts`, key `<group>`      | compiler | until replaced                         | latest state           |
| bucket `revoked`, key `<node>`        | command  | until deleted                          | latest state           |
| `blob.v1.<sha256>[.<part>]`           | compiler | while a kept version needs them        | immutable              |
| `live.config.v1.<group>`, `live.$KV.keys.>`, `live.$KV.rollouts.>` | server | not kept: what was stored, again | a hint |
| `ask.v1.watcher.<question>`, `ask.v1.compiler.<question>.<group>` | anyone | not kept (request/reply) | a question, a deadline |

Names of Kubernetes objects may contain dots, which separate NATS tokens, so every token is encoded: letters a-z, digits
and `-` stay, each other byte becomes `_hh`; the empty name is a single `_`. The encoding is reversible and injective.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

CLUSTER_STREAM: Final = "CLUSTER"
CONFIG_STREAM: Final = "CONFIG"
APPLIED_STREAM: Final = "APPLIED"
NODES_BUCKET: Final = "nodes"
VERDICTS_BUCKET: Final = "verdicts"
WATCHERS_BUCKET: Final = "watchers"
IDENTITIES_BUCKET: Final = "identities"
KEYS_BUCKET: Final = "keys"
REVOKED_BUCKET: Final = "revoked"
ROLLOUTS_BUCKET: Final = "rollouts"
BLOBS_STREAM: Final = "BLOBS"

VERSIONS_KEPT: Final = 64
"""How many versions `history`, `diff` and `rollback` reach back."""
VERSIONS_STORED: Final = 512
"""How many manifests the stream keeps: the kept ones, and what lies between the oldest of them and its checkpoint."""
NODE_REPORT_TTL_SECONDS: Final = 30
HEARTBEAT_SECONDS: Final = 5

SYNC_SUBJECT: Final = "cluster.v1.sync"
CLUSTER_SUBJECTS: Final = "cluster.v1.>"
CONFIG_SUBJECTS: Final = "config.v1.>"
APPLIED_SUBJECTS: Final = "applied.v1.*"
BLOBS_SUBJECTS: Final = "blob.v1.>"

ASK_WATCHER_BARRIER: Final = "ask.v1.watcher.barrier"
ASK_WATCHER_RESYNC: Final = "ask.v1.watcher.resync"
ASK_WATCHER_ENROL: Final = "ask.v1.watcher.enrol"
ASK_COMPILER_ADMIT: Final = "ask.v1.compiler.admit"
ASK_COMPILER_COVER: Final = "ask.v1.compiler.cover"
ASK_COMPILER_EXPLAIN: Final = "ask.v1.compiler.explain"
ASK_COMPILER_ROLLBACK: Final = "ask.v1.compiler.rollback"


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One JetStream stream."""

    name: str
    subjects: tuple[str, ...]
    messages_per_subject: int
    """How many messages of each subject are kept; the oldest go first."""
    ttl_seconds: int = 0
    """0: messages do not expire."""
    republish: bool = False
    """Whether the server sends what it has stored once more, to `republished(subject)`, for nodes to hear."""


def _bucket(name: str, *, ttl_seconds: int = 0, republish: bool = False) -> StreamSpec:
    """A key-value bucket as NATS clients know it, except that no publisher may roll up, and so wipe, what is others'."""
    return StreamSpec(name=f"KV_{name}", subjects=(f"$KV.{name}.>",), messages_per_subject=1, ttl_seconds=ttl_seconds, republish=republish)


BUCKET_TTL_SECONDS: Final = {NODES_BUCKET: NODE_REPORT_TTL_SECONDS, WATCHERS_BUCKET: NODE_REPORT_TTL_SECONDS}
"""Of the buckets whose values expire."""

STREAMS: Final = (
    StreamSpec(name=CLUSTER_STREAM, subjects=(CLUSTER_SUBJECTS,), messages_per_subject=1),
    StreamSpec(name=CONFIG_STREAM, subjects=(CONFIG_SUBJECTS,), messages_per_subject=VERSIONS_STORED, republish=True),
    StreamSpec(name=APPLIED_STREAM, subjects=(APPLIED_SUBJECTS,), messages_per_subject=256),
    StreamSpec(name=BLOBS_STREAM, subjects=(BLOBS_SUBJECTS,), messages_per_subject=1),
    *(_bucket(b, ttl_seconds=BUCKET_TTL_SECONDS.get(b, 0)) for b in (NODES_BUCKET, VERDICTS_BUCKET, WATCHERS_BUCKET)),
    _bucket(IDENTITIES_BUCKET),
    _bucket(KEYS_BUCKET, republish=True),
    _bucket(REVOKED_BUCKET),
    _bucket(ROLLOUTS_BUCKET, republish=True),
)

_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-")
_PLAIN_NAME: Final = re.compile(r"[a-z0-9-]+")


def token(name: str) -> str:
    """`name` as one NATS subject token."""
    if _PLAIN_NAME.fullmatch(name):  # nearly all: 30,000 in a first list
        return name
    return "".join(chr(b) if b in _PLAIN else f"_{b:02x}" for b in name.encode()) or "_"


def untoken(encoded: str) -> str:
    """The name that `token` encoded. Raises ValueError for what `token` cannot have produced."""
    if encoded == "_":
        return ""
    out = bytearray()
    at = 0
    while at < len(encoded):
        if encoded[at] == "_":
            out.append(int(encoded[at + 1 : at + 3], 16))
            at += 3
        else:
            out.append(ord(encoded[at]))
            at += 1
    name = out.decode()
    if token(name) != encoded:
        raise ValueError(f"not an encoded subject token: {encoded!r}")
    return name


def cluster_subject(kind: str, namespace: str, name: str) -> str:
    """The subject of one object's deltas."""
    return f"cluster.v1.{kind.lower()}.{token(namespace)}.{token(name)}"


def config_subject(group: str) -> str:
    """The subject of the versions for one group of nodes."""
    return f"config.v1.{token(group)}"


def applied_subject(node: str) -> str:
    """The subject on which one node says what it applied."""
    return f"applied.v1.{token(node)}"


def blob_subject(digest: str, part: int | None = None) -> str:
    """Of one part of a blob; without `part`, of the entry that says how many there are."""
    return f"blob.v1.{digest}" if part is None else f"blob.v1.{digest}.{part}"


def bucket_subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


def of_group(question: str, group: str) -> str:
    """The subject by which the compilers of one group are asked (`ASK_COMPILER_...`)."""
    return f"{question}.{token(group)}"


def keys_key(group: str, node: str) -> str:
    """The key of one node's sealing keys in the keys bucket."""
    return f"{token(group)}.{token(node)}"


def republished(subject: str) -> str:
    """Where the server repeats what a stream with `republish` has stored."""
    return f"live.{subject}"


def verdict_key(group: str, kind: str, namespace: str, name: str) -> str:
    """The key of one object's verdict by one group's compilers."""
    return f"{token(group)}.{kind.lower()}.{token(namespace)}.{token(name)}"
