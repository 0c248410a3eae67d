"""`explain`'s own matching of hosts and paths."""

from __future__ import annotations

from services.compiler.matching import GAVE_UP, Patience, matching_host, matching_route
from services.shared.contracts.tables import AliasRow, HostRow, RegexAliasRow, Route, encode_row
from services.shared.nginxtext.regex import LIMIT


def row(*patterns: str) -> HostRow:
    routes = tuple(Route(policy=f"p{n}", path=pattern) for n, pattern in enumerate(patterns))
    return HostRow(routes=routes, regex=tuple((LIMIT + pattern, n) for n, pattern in enumerate(patterns)))


def test_the_first_pattern_that_matches() -> None:
    found = matching_route(row("/api/v[0-9]+", "/api"), b"/API/v12/items", Patience())
    assert (found.index, found.how) == (0, "regex")


def test_only_the_first_alternative_of_a_path_is_anchored() -> None:
    assert matching_route(row("^/a|/b"), b"/x/b", Patience()).index == 0


def test_after_a_pattern_that_takes_for_ever_none_is_tried() -> None:
    """A tenant's: whoever asks must not be held up, nor the compiler; and it may be the one that guards the path."""
    found = matching_route(row("/(a|aa)+$", "/a"), b"/" + b"a" * 60 + b"!", Patience())
    assert (found.index, found.how) == (-1, GAVE_UP)
    assert found.notes == ("regex /(a|aa)+$ takes too long: nginx gives it up as well, by its match limit",)


def test_many_aliases_that_take_for_ever_are_given_up_together() -> None:
    rows = {"r": encode_row(RegexAliasRow(aliases=(("^(a|aa)+$", "h"),) * 1000))}
    found = matching_host(rows, b"a" * 60 + b".example", Patience())
    assert found.row is None
    assert len(found.notes) < 20
    assert sum("nginx may answer otherwise" in n for n in found.notes) == 1


def test_what_pcre_refuses_is_passed_over() -> None:
    found = matching_route(row("/(?<n", "/b"), b"/b", Patience())
    assert found.index == 1
    assert found.notes == ("regex /(?<n is passed over: a group of an unknown kind",)


def test_an_alias_whose_host_is_gone_leaves_the_name_to_the_wildcard() -> None:
    rows = {
        "a/a.example": encode_row(AliasRow(host="gone")),
        "r": encode_row(RegexAliasRow(aliases=(("^a", "h"),))),
        "h/h": encode_row(row("/")),
        "h/_": encode_row(row("/")),
    }
    assert matching_host(rows, b"a.example", Patience()).name == "h"
    assert matching_host(rows | {"h/*.example": encode_row(row("/"))}, b"a.example", Patience()).name == "*.example"
    assert matching_host(rows, b"b.example", Patience()).name == "_"
