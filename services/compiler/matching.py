"""Which host row and which of its routes answer a request: what lua/sluice/hosts.lua and routes.lua do, for `explain`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from services.compiler import pcre
from services.shared.contracts.problem import printable
from services.shared.contracts.tables import CATCH_ALL, REGEX_ALIASES_KEY, AliasRow, HostRow, RegexAliasRow
from services.shared.nginxtext.regex import LIMIT

MATCH_SECONDS: Final = 0.2
"""For one pattern."""
ALL_SECONDS: Final = 1.0
"""For all patterns of a question: a compiler has other things to do."""
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

Rows = Mapping[str, bytes]


class HostMatch(Struct, frozen=True, kw_only=True):
    """`row` None: there is not even a catch-all."""

    name: str
    row: HostRow | None
    notes: tuple[str, ...]


class RouteMatch(Struct, frozen=True, kw_only=True):
    """`how`: exact, prefix, regex; slash: nginx's own redirect; empty: nothing matches. `index` counts in the row's routes; -1: none."""

    how: str = ""
    index: int = -1
    notes: tuple[str, ...] = ()


GAVE_UP: Final = "gave up"
"""In place of how a route was found: nothing after such a regular expression may answer."""


class Patience:
    """How long regular expressions may still take."""

    def __init__(self) -> None:
        self._until = time.monotonic() + ALL_SECONDS
        self._ended = False
        self.gave_up = False
        """The last search took longer than nginx' match limit allows."""

    def search(self, pattern: str, text: bytes) -> bool | str:
        """Whether it matches; or why that is not known."""
        self.gave_up = False
        seconds = min(MATCH_SECONDS, self._until - time.monotonic())
        if seconds <= 0:
            return self._end(pattern)
        try:
            return pcre.search(pattern, text, seconds=seconds) is not None
        except pcre.Unknown as error:
            return f"regex {_shown(pattern)} is passed over: {error}"
        except pcre.TakesTooLong:
            self.gave_up = True
            return f"regex {_shown(pattern)} takes too long: nginx gives it up as well, by its match limit"

    def _end(self, pattern: str) -> bool | str:
        ended, self._ended = self._ended, True
        return not ended and f"regex {_shown(pattern)} and what follows were not tried: others took too long, nginx may answer otherwise"


def _shown(pattern: str) -> str:
    return printable(pattern.removeprefix(LIMIT))


# --- hosts


def host_row(rows: Rows, name: str) -> HostRow | None:
    raw = rows.get(f"h/{name}")
    return msgspec.json.decode(raw, type=HostRow) if raw is not None else None


def matching_host(rows: Rows, host: bytes, patience: Patience) -> HostMatch:
    """nginx's own precedence of server names, with the one-label wildcards of Ingress hosts."""
    text = host.decode("utf-8", "surrogateescape")
    notes: list[str] = []
    for name, why in _candidates(rows, host, text, patience, notes):
        row = host_row(rows, name)
        if row is not None:
            return HostMatch(name=name, row=row, notes=(*notes, why))
    return HostMatch(name=CATCH_ALL, row=None, notes=tuple(notes))


def _candidates(rows: Rows, host: bytes, text: str, patience: Patience, notes: list[str]) -> Iterator[tuple[str, str]]:
    said = f"host {printable(text)}"
    yield text, f"{said}: exact"
    if len(host) <= 253 and (alias := _alias(rows, text)):
        yield alias[1], f"{said}: alias {alias[0]} of {alias[1]}"
    if parent := wildcard_of(text):
        yield parent, f"{said}: wildcard {parent}"
    if found := _regex_alias(rows, host, patience, notes):
        yield found[1], f"{said}: alias ~{_shown(found[0])} of {found[1]}"
    yield CATCH_ALL, f"{said}: no Ingress names it, the catch-all answers"


def _alias(rows: Rows, host: str) -> tuple[str, str] | None:
    """(alias, host): the exact name, then `*.suffix` and `prefix.*`, the longest first."""
    dots = [n for n, c in enumerate(host) if c == "."]
    prefixes = [n for n in reversed(dots) if n < len(host) - 1]
    for name in (host, *(f"*{host[n:]}" for n in dots), *(f"{host[: n + 1]}*" for n in prefixes)):
        raw = rows.get(f"a/{name}")
        if raw is not None:
            return name, msgspec.json.decode(raw, type=AliasRow).host
    return None


def wildcard_of(host: str) -> str:
    """`*.parent` for one label of word characters or hyphens; else empty."""
    label, dot, parent = host.partition(".")
    return f"*.{parent}" if dot and _LABEL.fullmatch(label) else ""


def _regex_alias(rows: Rows, host: bytes, patience: Patience, notes: list[str]) -> tuple[str, str] | None:
    raw = rows.get(REGEX_ALIASES_KEY)
    for pattern, name in msgspec.json.decode(raw, type=RegexAliasRow).aliases if raw is not None else ():
        found = patience.search(pattern, host)
        if found is True:
            return pattern, name
        if found:
            notes.append(str(found))
    return None


# --- routes


def matching_route(row: HostRow, uri: bytes, patience: Patience) -> RouteMatch:
    if row.regex:
        return _by_regex(row, uri, patience)
    exact = {k.encode(): n for k, n in row.exact.items()}
    if uri in exact:
        return RouteMatch(how="exact", index=exact[uri])
    if uri in {s.encode() for s in row.slash}:
        return RouteMatch(how="slash")
    prefixes = {k.encode(): n for k, n in row.prefix.items()}
    for at in range(len(uri), 0, -1):
        if uri[at - 1 : at] == b"/" and uri[:at] in prefixes:
            return RouteMatch(how="prefix", index=prefixes[uri[:at]])
    return RouteMatch()


def _by_regex(row: HostRow, uri: bytes, patience: Patience) -> RouteMatch:
    notes: list[str] = []
    for pattern, index in row.regex:
        found = patience.search(pattern, uri)
        if found is True:
            return RouteMatch(how="regex", index=index, notes=tuple(notes))
        if found:
            notes.append(str(found))
        if patience.gave_up:
            return RouteMatch(how=GAVE_UP, notes=tuple(notes))
    return RouteMatch(notes=tuple(notes))
