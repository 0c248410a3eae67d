"""Which rows a node can serve with the policies it has, and what it must wait with. Pure functions over keys and bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

_POLICY = re.compile(rb'"policy":"([0-9a-f]{16})"')
"""Inside a JSON string every quote is escaped, so this matches the field and nothing that a tenant wrote."""


def policies_of(row: bytes) -> set[str]:
    """The policies that a host row names."""
    return {m.decode() for m in _POLICY.findall(row)}


class Split(Struct, frozen=True, kw_only=True):
    """A change of rows, divided by what the node can serve now."""

    upsert: dict[str, bytes]
    delete: tuple[str, ...]
    deferred: dict[str, str]
    """Host row key -> the first policy it lacks. Its previous form stays."""


def split(upsert: Mapping[str, bytes], delete: Iterable[str], loaded: frozenset[str]) -> Split:
    """Host rows whose policies are all loaded go; others are deferred. Rows that are not hosts always go."""
    ready: dict[str, bytes] = {}
    deferred: dict[str, str] = {}
    for key, row in upsert.items():
        missing = policies_of(row) - loaded if key.startswith("h/") else set()
        if missing:
            deferred[key] = min(missing)
        else:
            ready[key] = row
    return Split(upsert=ready, delete=tuple(delete), deferred=deferred)


def files_of(rows: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 -> content of the `f/` rows."""
    return {k[2:]: msgspec.json.decode(v)["content"] for k, v in rows.items() if k.startswith("f/")}


def host_count(rows: Mapping[str, bytes]) -> int:
    return sum(1 for k in rows if k.startswith("h/"))


def names_of(key: str, row: bytes) -> set[str]:
    """Host names in a row that the node must resolve: ExternalName upstreams, and auth services outside the cluster."""
    if key.startswith("b/") and b'"external":' in row:
        return {msgspec.json.decode(row)["external"]}
    if key.startswith("h/") and b'"auth":{' in row:
        found = set()
        for route in msgspec.json.decode(row)["routes"]:
            auth = route.get("auth")
            if auth and not auth.get("backend"):
                match = re.match(r"https?://([A-Za-z0-9.-]+)(:\d+)?([/?#]|$)", auth["url"], re.ASCII)
                if match and not re.fullmatch(r"[\d.]+", match[1]):
                    found.add(match[1])
        return found
    return set()
