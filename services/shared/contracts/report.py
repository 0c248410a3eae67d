"""What nodes and watchers say of themselves (applier, watcher -> all)."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from services.shared.contracts.problem import Problem


class DeferredRow(Struct, frozen=True, kw_only=True):
    """A row that waits: the node lacks (or refused) a policy it needs, and keeps the row's previous form."""

    key: str
    policy: str


class NodeReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latest state of one node (bucket `nodes`); also the heartbeat, every `HEARTBEAT_SECONDS`."""

    node: str
    group: str
    at: float
    epoch: int = 0
    """0: nothing applied yet."""
    number: int = 0
    digest: str = ""
    policy_digest: str = ""
    """Of the newest version taken, whether or not nginx runs all of its policies: see `unloaded`."""
    unloaded: tuple[str, ...] = ()
    """Policies of that bundle that nginx does not run yet: the rollout does not let them in here, or they are about to be installed.
    Refused ones are in `refused` instead."""
    generation: int = 0
    """The nginx generation that a worker answered with; grows with each reload."""
    ready: bool = False
    """Has applied at least the head seen at start, and nginx answers."""
    head: int = 0
    """The newest version number the node has seen, applied or not."""
    deferred: tuple[DeferredRow, ...] = ()
    """At most 100; `deferred_count` has the full number."""
    deferred_count: int = 0
    refused: dict[str, str] = {}
    """Policy hash -> nginx's words, for policies this node does not load."""
    reloads: dict[str, int] = {}
    """Cause -> count since the applier's start: `policy`, `table-memory`, `start`, `revert`, `recover`."""
    last_error: str = ""
    last_error_at: float = 0.0
    last_good: str = ""
    """`epoch.number` on disk."""
    nginx_version: str = ""
    """Of the package, not of the binary: distributions backport fixes."""
    nginx_pid: int = 0
    http_port: int = 0
    https_port: int = 0
    health_port: int = 0


class Applied(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version went live on one node (`applied_subject`). Times are unix seconds; 0: the phase did not occur."""

    node: str
    epoch: int
    number: int
    digest: str
    received_at: float
    verified_at: float = 0.0
    tested_at: float = 0.0
    """`nginx -t` passed."""
    loaded_at: float = 0.0
    """A worker answered with the new generation."""
    live_at: float = 0.0
    """The rows were in shared memory: the next request sees them."""
    reload: str = ""
    """The cause of the reload; empty: none."""
    deferred_count: int = 0
    trace: str = ""


class WatcherReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latest state of one watcher (bucket `watchers`)."""

    watcher: str
    at: float
    source: str
    """`manifests /path` or `kubernetes`."""
    epoch: int = 0
    synced: bool = False
    objects: dict[str, int] = {}
    """Kind -> count."""
    problems: tuple[Problem, ...] = ()
    """Unreadable files and invalid objects; `field` is `file:line`."""


decode_node_report = msgspec.json.Decoder(NodeReport).decode
decode_applied = msgspec.json.Decoder(Applied).decode
decode_watcher_report = msgspec.json.Decoder(WatcherReport).decode
