"""What the compiler knows of the cluster: the newest form of every object. One mutable store; everything else is made from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from services.shared.contracts.delta import Delta, KindState, SyncMark, object_digest
from services.shared.contracts.objects import KINDS, AnyObject, ConfigMap, EndpointSlice, Ingress, IngressClass, Key, Secret, Service

T = TypeVar("T", Ingress, IngressClass, Service, EndpointSlice, Secret, ConfigMap)

SERVICE_LABEL = "kubernetes.io/service-name"


class World:
    """Objects by kind and (namespace, name), with a digest of each kind that does not depend on order."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], AnyObject]] = {kind: {} for kind in KINDS}
        self._digests: dict[Key, int] = {}
        self._sums: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.slices: dict[tuple[str, str], dict[str, EndpointSlice]] = {}
        """(namespace, Service name) -> its EndpointSlices by name."""

    def apply(self, delta: Delta) -> tuple[AnyObject | None, AnyObject | None] | None:
        """Take one delta; returns (before, after), or None where nothing changed."""
        key = delta.key
        store = self._objects.get(key.kind)
        if store is None:
            return None
        place = (key.namespace, key.name)
        before = store.get(place)
        if delta.object is None:
            if before is None:
                return None
            del store[place]
            self._sums[key.kind] -= self._digests.pop(key)
            self._unlink(before)
            return before, None
        digest = object_digest(delta.object)
        if self._digests.get(key) == digest:
            return None
        store[place] = delta.object
        self._sums[key.kind] += digest - self._digests.get(key, 0)
        self._digests[key] = digest
        if before is not None:
            self._unlink(before)
        self._link(delta.object)
        return before, delta.object

    def _link(self, obj: AnyObject) -> None:
        if isinstance(obj, EndpointSlice):
            owner = (obj.metadata.namespace, obj.metadata.labels.get(SERVICE_LABEL, ""))
            self.slices.setdefault(owner, {})[obj.metadata.name] = obj

    def _unlink(self, obj: AnyObject) -> None:
        if isinstance(obj, EndpointSlice):
            owner = (obj.metadata.namespace, obj.metadata.labels.get(SERVICE_LABEL, ""))
            found = self.slices.get(owner, {})
            found.pop(obj.metadata.name, None)
            if not found:
                self.slices.pop(owner, None)

    def get(self, kind: type[T], namespace: str, name: str) -> T | None:
        found = self._objects[kind.__name__].get((namespace, name))
        return found if isinstance(found, kind) else None

    def ingress_class(self, name: str) -> IngressClass | None:
        return self.get(IngressClass, "", name)

    def all(self, kind: type[T]) -> Iterator[T]:
        for obj in self._objects[kind.__name__].values():
            if isinstance(obj, kind):
                yield obj

    def count(self, kind: str) -> int:
        return len(self._objects[kind])

    def agrees(self, mark: SyncMark) -> bool:
        """Whether this is the world that the mark describes."""
        return all(self.state(kind) == mark.kinds.get(kind, _EMPTY) for kind in KINDS)

    def state(self, kind: str) -> KindState:
        return KindState(count=len(self._objects[kind]), digest=f"{self._sums[kind] % (1 << 256):064x}")


_EMPTY = KindState(count=0, digest=f"{0:064x}")
