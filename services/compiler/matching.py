"""Which route of a host row answers a path: what lua/sluice/routes.lua does, for `explain`."""

from __future__ import annotations

from typing import Final

import regex

from services.shared.contracts.problem import printable
from services.shared.contracts.tables import HostRow, Route
from services.shared.nginxtext.regex import LIMIT

MATCH_SECONDS: Final = 0.2


def matching_route(row: HostRow, uri: str) -> tuple[Route | None, str]:
    """(route, how). Regexes are matched by another library than nginx' here, close enough to explain."""
    if row.regex:
        return _by_regex(row, uri)
    if uri in row.exact:
        return row.routes[row.exact[uri]], "exact"
    if uri in row.slash:
        return None, "slash"
    for at in range(len(uri), 0, -1):
        if uri[at - 1] == "/" and uri[:at] in row.prefix:
            return row.routes[row.prefix[uri[:at]]], "prefix"
    return None, ""


def _by_regex(row: HostRow, uri: str) -> tuple[Route | None, str]:
    """A tenant's pattern may take for ever: then nginx gives up by its match limit, and so does this."""
    for pattern, n in row.regex:
        try:
            if regex.match(pattern.removeprefix(LIMIT), uri, regex.IGNORECASE, timeout=MATCH_SECONDS):
                return row.routes[n], "regex"
        except TimeoutError:
            return None, f"regex {printable(pattern.removeprefix(LIMIT))} takes too long"
        except regex.error:
            continue  # PCRE knows what this library does not
    return None, ""
