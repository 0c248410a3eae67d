"""Tenants' regular expressions (paths, rewrite patterns, canary patterns, aliases), for PCRE.

Python's `re` is no oracle for PCRE. The check here is a reader of the PCRE syntax that tenants use: balanced groups and classes, no
backtracking verbs, no named groups, no recursion, no callouts; what passes is bounded at run time with `(*LIMIT_MATCH=...)`. It matches
bytes: a letter of another language is several, so it stands in no class.
"""

from __future__ import annotations

import re
from typing import Final

from services.shared.nginxtext.arguments import TextError

LIMIT: Final = "(*LIMIT_MATCH=500000)"
MAX_LENGTH: Final = 2048

_GROUPS: Final = ("?:", "?=", "?!", "?<=", "?<!", "?>", "?i)", "?-i)", "?i:", "?-i:", "?|")
_QUANTIFIER: Final = re.compile(r"\{(\d{1,5})(,(\d{0,5}))?\}", re.ASCII)


def bounded(pattern: str, *, anchored: bool = False) -> str:
    """The pattern as nginx's Lua may run it: checked, and with a match limit. Raises TextError."""
    check_regex(pattern)
    return f"{LIMIT}^{pattern}" if anchored else LIMIT + pattern


def check_regex(pattern: str) -> None:
    """Raises TextError with what is wrong."""
    if not pattern.isprintable():
        raise TextError("a regular expression of printable characters")
    if len(pattern.encode()) > MAX_LENGTH:
        raise TextError(f"a regular expression of at most {MAX_LENGTH} bytes")
    depth, at, end = 0, 0, len(pattern)
    repeatable = False  # whether a quantifier may come next
    while at < end:
        c = pattern[at]
        if c == "\\":
            at, repeatable = _escape(pattern, at), True
        elif c == "[":
            at, repeatable = _class(pattern, at), True
        elif c == "(":
            at, depth, repeatable = _open(pattern, at), depth + 1, False
        elif c == ")":
            depth -= 1
            if depth < 0:
                raise TextError("a regular expression with balanced parentheses")
            at, repeatable = at + 1, True
        elif c in "*+?":
            if not repeatable:
                raise TextError(f"a regular expression with something before its {c}")
            at, repeatable = at + 1, False
            if pattern[at : at + 1] in ("?", "+"):
                at += 1
        elif c == "{" and (found := _QUANTIFIER.match(pattern, at)):
            if not repeatable:
                raise TextError("a regular expression with something before its {")
            low, high = int(found[1]), int(found[3] or found[1])
            if high < low or high > 1000:
                raise TextError("a regular expression whose {n,m} is ordered and at most 1000")
            at, repeatable = found.end(), False
            if pattern[at : at + 1] in ("?", "+"):
                at += 1
        else:
            repeatable = c not in "|^"
            at += 1
    if depth:
        raise TextError("a regular expression with balanced parentheses")


def _escape(pattern: str, at: int) -> int:
    after = pattern[at + 1 : at + 2]
    if not after:
        raise TextError("a regular expression that does not end with a backslash")
    if not after.isascii():
        raise TextError(f"a regular expression with {after} as it is, without a backslash")
    if after.isalpha() and after not in "dDwWsSbBnrtfvhHAzZxQEpPuUKRX":
        raise TextError(f"a regular expression without \\{after}")
    if after in "QEpPuUKRX":
        raise TextError(f"a regular expression without \\{after}")
    if after == "x":
        if not re.fullmatch(r"[0-9A-Fa-f]{2}", pattern[at + 2 : at + 4], re.ASCII):
            raise TextError("a regular expression whose \\x has two hex digits")
        return at + 4
    return at + 2


def _class(pattern: str, at: int) -> int:
    start = at
    at += 1
    if pattern[at : at + 1] == "^":
        at += 1
    if pattern[at : at + 1] == "]":
        at += 1
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\":
            at = _escape(pattern, at)
            continue
        if pattern.startswith("[:", at):
            close = pattern.find(":]", at)
            if close < 0 or pattern[at + 2 : close].lstrip("^") not in _POSIX:
                raise TextError("a regular expression with known [:classes:]")
            at = close + 2
            continue
        if not pattern[at].isascii():
            raise TextError(f"a regular expression with ({pattern[at]}|...) in place of a class: it is matched byte by byte")
        if _bad_range(pattern, at):
            raise TextError("a regular expression whose ranges are ordered")
        at += 1
    if at >= len(pattern):
        raise TextError(f"a regular expression that closes the [ at {start}")
    return at + 1


def _bad_range(pattern: str, at: int) -> bool:
    span = pattern[at : at + 3]
    return len(span) == 3 and span[1] == "-" and span[2] not in "]\\[" and span[0] > span[2]


_POSIX: Final = frozenset("alnum alpha ascii blank cntrl digit graph lower print punct space upper word xdigit".split())


def _open(pattern: str, at: int) -> int:
    rest = pattern[at + 1 :]
    if rest.startswith("*"):
        raise TextError("a regular expression without (* verbs")
    if rest.startswith("?"):
        for known in _GROUPS:
            if rest.startswith(known):
                return at + 1 + len(known.rstrip(")"))
        raise TextError("a regular expression without named, conditional or recursive groups")
    return at + 1
