"""What a watcher puts on the bus, without a watcher: deltas and sync marks, for tests of the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.compiler.world import World
from services.shared.bus.port import Bus
from services.shared.contracts.delta import Delta, SyncMark, encode_delta
from services.shared.contracts.objects import KINDS
from services.shared.contracts.subjects import SYNC_SUBJECT, cluster_subject
from tests.support.compiling import delete, upsert


class Cluster:
    """Objects, published one by one."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.deltas: dict[tuple[str, str, str], Delta] = {}
        self._world = World()

    async def put(self, *objects: Mapping[str, Any]) -> int:
        """Publish objects without a mark; returns the last sequence."""
        return await self.publish(*(upsert(obj) for obj in objects))

    async def publish(self, *deltas: Delta) -> int:
        last = 0
        for delta in deltas:
            self.deltas[(delta.kind, delta.namespace, delta.name)] = delta
            self._world.apply(delta)
            last = await self._bus.publish(cluster_subject(delta.kind, delta.namespace, delta.name), encode_delta(delta))
        return last

    async def remove(self, kind: str, name: str, namespace: str = "default") -> int:
        return await self.publish(delete(self.deltas[(kind, namespace, name)]))

    def forget(self, kind: str, name: str, namespace: str = "default") -> None:
        """Gone from the cluster, with nobody there to publish a tombstone."""
        self._world.apply(delete(self.deltas.pop((kind, namespace, name))))

    async def again(self) -> int:
        """Publish all there is, as after the loss of the stream, and the mark."""
        await self.publish(*self.deltas.values())
        return await self.mark()

    async def mark(self) -> int:
        """The sync mark of what there is now."""
        mark = SyncMark(epoch=1, kinds={kind: self._world.state(kind) for kind in KINDS})
        return await self._bus.publish(SYNC_SUBJECT, msgspec.json.encode(mark))
