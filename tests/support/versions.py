"""Content to commit, without an engine, for tests of versions."""

from __future__ import annotations

from collections.abc import Mapping

from services.compiler.commit import Change, Committer
from services.shared.bus.port import Bus
from services.shared.contracts.version import Cause, Manifest, Policy, PolicyBundle, policy_hash
from services.shared.versions import read
from tests.support.sealing import ring

GROUP = "default"


def bundle(text: str = "worker_rlimit_nofile 1024;") -> PolicyBundle:
    return PolicyBundle(policies=(Policy(hash=policy_hash("main", text), scope="main", text=text),))


def row(value: object) -> bytes:
    return f'{{"v":"{value}"}}'.encode()


class Content:
    """Rows that are edited and committed, as an engine does it."""

    def __init__(self, committer: Committer, rows: Mapping[str, bytes] | None = None) -> None:
        self.committer = committer
        self.rows: dict[str, bytes] = dict(rows or {})
        self.bundle = bundle()
        self.covers = 0
        self._fresh = dict(self.rows)

    async def commit(self, upsert: Mapping[str, bytes] | None = None, delete: tuple[str, ...] = ()) -> Manifest | None:
        """Commit an edit; None: nothing to commit."""
        changed = {**self._fresh, **(upsert or {})}
        self._fresh = {}
        for key in delete:
            del self.rows[key]
        self.rows.update(changed)
        return await self.committer.commit(self.change(changed, delete))

    def change(self, upsert: Mapping[str, bytes] | None = None, delete: tuple[str, ...] = ()) -> Change:
        causes = [Cause(kind="Ingress", namespace="default", name=key, op="upsert") for key in upsert or {}]
        return Change(
            rows=self.rows, upsert=dict(upsert or {}), delete=delete, bundle=self.bundle, causes=causes, covers=self.covers
        )  # fmt: skip


async def committer_on(bus: Bus) -> Committer:
    made = Committer(bus, GROUP, ring())
    await made.start()
    return made


async def content_of(bus: Bus, manifest: Manifest) -> dict[str, bytes]:
    """What a node that comes late makes of a version."""
    await read.bundle_of(bus, manifest)
    return await read.rows_of(bus, manifest, await read.stored(bus, GROUP), ring())
