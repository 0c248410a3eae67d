"""Which rows a node can serve with the policies it has, and what it must wait with. Pure functions over keys and bytes."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

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


def split(upsert: Mapping[str, bytes], delete: Iterable[str], loaded: frozenset[str], refused: Container[str] = ()) -> Split:
    """Host rows whose policies are all loaded go; others are deferred, and name a refused policy if they lack one. Rows that are not
    hosts always go."""
    ready: dict[str, bytes] = {}
    deferred: dict[str, str] = {}
    for key, row in upsert.items():
        missing = policies_of(row) - loaded if key.startswith("h/") else set()
        if missing:
            deferred[key] = min((h for h in missing if h in refused), default=min(missing))
        else:
            ready[key] = row
    return Split(upsert=ready, delete=tuple(delete), deferred=deferred)


def still_needed(delete: Iterable[str], deferred: Iterable[str], live: Mapping[str, bytes]) -> set[str]:
    """Which of the rows to be deleted the previous forms of deferred hosts refer to: they stay with them.

    A row names another by its key without the kind, as a whole JSON string; a path that reads the same keeps a row longer, no more.
    """
    hosts = [k for k in deferred if k in live]
    wanted = {k for k in delete if k in live}
    kept = {f"t/{k[2:]}" for k in hosts} & wanted
    open_rows = [live[k] for k in (*hosts, *kept)]
    while open_rows:
        row = open_rows.pop()
        for key in [k for k in wanted - kept if b'"' + k[2:].encode() + b'"' in row]:
            kept.add(key)
            open_rows.append(live[key])
    return kept


def files_of(rows: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 -> content of the `f/` rows."""
    return {k[2:]: msgspec.json.decode(v)["content"] for k, v in rows.items() if k.startswith("f/")}


def host_count(keys: Iterable[str]) -> int:
    return sum(1 for k in keys if k.startswith("h/"))


def names_of(key: str, row: bytes) -> set[str]:
    """Host names in a row that the node must resolve: ExternalName upstreams and ports, and auth services outside the cluster."""
    if key.startswith(("b/", "l/")) and b'"external":' in row:
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
