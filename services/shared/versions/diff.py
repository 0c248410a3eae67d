"""What differs between two versions, and which objects caused it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from services.shared.bus.port import Bus
from services.shared.contracts.version import Cause, Policy, VersionId
from services.shared.sealing.material import is_secret
from services.shared.versions.read import before, bundle_of, find, rows_of, stored


class RowChange(Struct, frozen=True, kw_only=True):
    """One row. `before` or `after` None: not there. Secret rows show only that they differ."""

    key: str
    before: Any = None
    after: Any = None


class VersionDiff(Struct, frozen=True, kw_only=True):
    """From version `before` to version `after`."""

    before: str
    after: str
    causes: tuple[Cause, ...]
    """Of all versions in between."""
    rows: tuple[RowChange, ...]
    policies_added: tuple[Policy, ...]
    policies_removed: tuple[Policy, ...]


async def diff(bus: Bus, group: str, a: VersionId | None, b: VersionId) -> VersionDiff:
    """Compare two versions, or (`a` None) one with its predecessor. Epoch 0: of equal numbers, the newest epoch's. Raises Unreadable."""
    manifests = await stored(bus, group)
    second = find(manifests, b.number, b.epoch)
    first = find(manifests, a.number, a.epoch) if a is not None else before(manifests, second)
    rows_a, rows_b = await rows_of(bus, first, manifests, None), await rows_of(bus, second, manifests, None)
    policies_a = {p.hash: p for p in (await bundle_of(bus, first)).policies}
    policies_b = {p.hash: p for p in (await bundle_of(bus, second)).policies}
    low, high = sorted((first.id, second.id))
    causes = {(c.kind, c.namespace, c.name): c for m in manifests if low < m.id <= high for c in m.causes}
    keys = sorted(k for k in rows_a.keys() | rows_b.keys() if _differs(k, rows_a, rows_b))
    return VersionDiff(
        before=str(first.id),
        after=str(second.id),
        causes=tuple(causes[k] for k in sorted(causes)),
        rows=tuple(RowChange(key=k, before=_shown(k, rows_a.get(k)), after=_shown(k, rows_b.get(k))) for k in keys),
        policies_added=tuple(policies_b[h] for h in sorted(policies_b.keys() - policies_a.keys())),
        policies_removed=tuple(policies_a[h] for h in sorted(policies_a.keys() - policies_b.keys())),
    )


def _differs(key: str, a: dict[str, bytes], b: dict[str, bytes]) -> bool:
    """Sealed rows are named by their content; what they are sealed with is no difference."""
    return (key in a) != (key in b) if is_secret(key) else a.get(key) != b.get(key)


def _shown(key: str, row: bytes | None) -> Any:
    if row is None:
        return None
    return "<redacted>" if is_secret(key) else msgspec.json.decode(row)
