"""A PCRE of a row, matched as nginx's Lua does: caseless, on bytes, anywhere in the text unless it is anchored.

PCRE itself is not here. What `check_regex` lets through is told to the `regex` library in words that it reads as PCRE reads the pattern.
Not told: alternatives of unequal length inside a look-behind, which PCRE refuses, and where exactly it reaches its match limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import regex

from services.shared.nginxtext.regex import LIMIT

MOST_NESTED: Final = 250
"""As PCRE is built."""
CHARACTERS: Final = frozenset(range(256))
_SETS: Final = {
    "h": frozenset(b"\t \xa0"),
    "v": frozenset(b"\n\x0b\x0c\r\x85"),
    "d": frozenset(b"0123456789"),
    "s": frozenset(b"\t\n\x0b\x0c\r "),
    "w": frozenset(c for c in range(128) if chr(c).isalnum() or c == 0x5F),
}
_LETTERS: Final = frozenset(c for c in range(128) if chr(c).isalpha())
_POSIX: Final = {
    "alnum": _LETTERS | _SETS["d"],
    "alpha": _LETTERS,
    "ascii": frozenset(range(128)),
    "blank": frozenset(b"\t "),
    "cntrl": frozenset([*range(32), 127]),
    "digit": _SETS["d"],
    "graph": frozenset(range(33, 127)),
    "lower": _LETTERS,  # caseless
    "print": frozenset(range(32, 127)),
    "punct": frozenset(c for c in range(33, 127) if not chr(c).isalnum()),
    "space": _SETS["s"],
    "upper": _LETTERS,
    "word": _SETS["w"],
    "xdigit": frozenset(b"0123456789abcdefABCDEF"),
}
_CONTROL: Final = {"n": 10, "r": 13, "t": 9, "f": 12, "a": 7, "e": 27}
_ASSERTIONS: Final = {"b": r"\b", "B": r"\B", "A": r"\A", "z": r"\Z", "Z": r"(?=\n?\Z)"}
_QUANTIFIER: Final = re.compile(r"\{\d+(,\d*)?\}[?+]?", re.ASCII)
_GROUP: Final = re.compile(r"\?(?:[:=!>|]|<[=!]|-?i[:)])|(?!\?)", re.ASCII)
_OCTAL: Final = re.compile(r"[0-7]{1,3}", re.ASCII)
_POSIX_CLASS: Final = re.compile(r"\[:(\^?)([a-z]+):\]", re.ASCII)


class Unknown(Exception):
    """Not an expression that PCRE takes, or not one that is understood here."""


class TakesTooLong(Exception):
    """PCRE would give up as well, by its match limit."""


def search(pattern: str, text: bytes, *, seconds: float) -> regex.Match[bytes] | None:
    """Raises Unknown and TakesTooLong."""
    try:
        return compiled(pattern).search(text, timeout=seconds)
    except TimeoutError as error:
        raise TakesTooLong from error


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> regex.Pattern[bytes]:
    """Raises Unknown."""
    told = _Reader(pattern.removeprefix(LIMIT)).read()
    try:
        return regex.compile(told.encode("latin-1"), regex.IGNORECASE | regex.VERSION1)
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        raise Unknown(str(error)) from error


class _Reader:
    """Reads one expression from left to right."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern.encode("utf-8", "surrogateescape").decode("latin-1")
        self._at = 0
        self._groups = 0
        self._open: list[bool] = []
        """Groups that have begun: whether it is a look-behind, or inside of one."""

    def read(self) -> str:
        out = []
        while self._at < len(self._text):
            out.append(self._token())
        return "".join(out)

    def _token(self) -> str:
        c = self._next()
        if c == "\\":
            return self._escape()
        if c == "[":
            return self._class()
        if c == "{":
            found = _QUANTIFIER.match(self._text, self._at - 1)
            if found is None:
                return _character(ord(c))
            self._at = found.end()
            if "," in found[0]:
                self._repeat()
            return found[0]
        if c == "(":
            return self._group()
        if c == ")":
            self._open[-1:] = []
        if c in "*+?":
            self._repeat()
        return self._assertion(c) if c in "^$" else c if c in ".|)*+?" else _character(ord(c))

    def _repeat(self) -> None:
        if self._open and self._open[-1]:
            raise Unknown("a look-behind of no fixed length")

    def _group(self) -> str:
        found = _GROUP.match(self._text, self._at)
        if found is None:
            raise Unknown("a group of an unknown kind")
        self._at = found.end()
        told = f"({found[0]}"
        if told.endswith(")"):
            return self._assertion(told)
        if len(self._open) >= MOST_NESTED:
            raise Unknown("groups are nested too deeply")
        self._groups += told == "("
        inside = bool(self._open) and self._open[-1] and told not in ("(?=", "(?!")
        self._open.append(told.startswith("(?<") or inside)
        return told

    def _assertion(self, told: str) -> str:
        """PCRE has nothing to repeat here."""
        if self._text.startswith(("*", "+", "?"), self._at) or _QUANTIFIER.match(self._text, self._at):
            raise Unknown("a quantifier after an assertion")
        return told

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise Unknown("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _escape(self) -> str:
        c = self._next()
        if c in _ASSERTIONS:
            return self._assertion(_ASSERTIONS[c])
        if "1" <= c <= "9" and (found := self._reference()):
            return found
        characters = self._escaped(c)
        return _character(characters) if isinstance(characters, int) else _class(characters)

    def _reference(self) -> str:
        """PCRE: below 10, or a group that has begun; else the digits are octal."""
        found = re.compile(r"\d+", re.ASCII).match(self._text, self._at - 1)
        if found is None or (int(found[0]) >= 10 and int(found[0]) > self._groups):
            return ""
        self._at = found.end()
        return rf"(?:\g<{int(found[0])}>)"

    def _escaped(self, c: str) -> int | frozenset[int]:
        """What is left of an escape: a character, or several."""
        if c in _SETS:
            return _SETS[c]
        if c.lower() in _SETS:
            return CHARACTERS - _SETS[c.lower()]
        if c in _CONTROL:
            return _CONTROL[c]
        if c == "x":
            digits = re.compile(r"[0-9A-Fa-f]{0,2}").match(self._text, self._at)
            self._at = digits.end() if digits else self._at
            return int(digits[0] or "0", 16) if digits else 0
        if (found := _OCTAL.match(self._text, self._at - 1)) is not None:
            self._at = found.end()
            return int(found[0], 8) & 0xFF
        if c.isascii() and c.isalpha():
            raise Unknown(f"\\{c}")
        return ord(c)

    # --- classes

    def _class(self) -> str:
        negated = self._text.startswith("^", self._at)
        self._at += negated
        found: set[int] = set()
        first = True
        while first or not self._text.startswith("]", self._at):
            first = False
            found.update(self._item())
        self._at += 1
        return _class(found, negated=negated)

    def _item(self) -> Iterable[int]:
        if posix := _POSIX_CLASS.match(self._text, self._at):
            self._at = posix.end()
            if posix[2] not in _POSIX:
                raise Unknown(f"[:{posix[2]}:]")
            return CHARACTERS - _POSIX[posix[2]] if posix[1] else _POSIX[posix[2]]
        low = self._atom()
        if isinstance(low, frozenset):
            return low
        if not self._text.startswith("-", self._at) or self._text[self._at + 1 : self._at + 2] in ("]", ""):
            return {low}
        if _POSIX_CLASS.match(self._text, self._at + 1):
            return {low}
        self._at += 1
        high = self._atom()
        if isinstance(high, frozenset):
            return {low, ord("-")} | high
        if high < low:
            raise Unknown("a range is out of order")
        return set(range(low, high + 1))

    def _atom(self) -> int | frozenset[int]:
        c = self._next()
        if c != "\\":
            return ord(c)
        c = self._next()
        if c == "b":
            return 8
        if c in "AzZ":  # PCRE: an escape that means nothing in a class is its letter
            return ord(c)
        return self._escaped(c)


def _character(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else rf"\x{code:02x}"


def _class(characters: Iterable[int], *, negated: bool = False) -> str:
    members = "".join(rf"\x{c:02x}" for c in sorted(characters))
    return f"[{'^' if negated else ''}{members}]" if members else ("[\\x00-\\xff]" if negated else "(?!)")
