"""`explain`'s own matching of paths."""

from __future__ import annotations

from services.compiler.matching import matching_route
from services.shared.contracts.tables import HostRow, Route
from services.shared.nginxtext.regex import LIMIT


def row(*patterns: str) -> HostRow:
    routes = tuple(Route(policy=f"p{n}", path=pattern) for n, pattern in enumerate(patterns))
    return HostRow(routes=routes, regex=tuple((LIMIT + pattern, n) for n, pattern in enumerate(patterns)))


def test_the_first_pattern_that_matches() -> None:
    route, how = matching_route(row("/api/v[0-9]+", "/api"), "/API/v12/items")
    assert route is not None and (route.policy, how) == ("p0", "regex")


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    """A tenant's: whoever asks must not be held up, nor the compiler."""
    route, how = matching_route(row("/(a|aa)+$"), "/" + "a" * 60 + "!")
    assert route is None and how == "regex /(a|aa)+$ takes too long"


def test_what_only_pcre_knows_is_passed_over() -> None:
    route, _ = matching_route(row("/(?<n", "/b"), "/b")
    assert route is not None and route.policy == "p1"
