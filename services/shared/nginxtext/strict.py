"""A strict reader of nginx text: it accepts only the small language that `arguments` writes, and refuses everything it might misread.

nginx's own tokenizer and crossplane differ in places (vertical tabs, no-break spaces, `${` swallowing `;`). This one gates the
bytes first, so that what it accepts both of them read the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from services.shared.nginxtext.arguments import TOKEN_LIMIT, TextError


class Directive(Struct, frozen=True):
    """`name args;` or `name args { block }`."""

    name: str
    args: tuple[str, ...] = ()
    """Unquoted and unescaped; `${literal_dollar}` stays as it is."""
    block: tuple[Directive, ...] | None = None


class SyntaxProblem(TextError):
    """Text that is not of the small language."""


_SPACE = " \t\n"
_SPECIAL = _SPACE + ";{}"
_ESCAPED = re.compile(r"[^\s;{}\"'\\$#tnr]")
"""What a backslash may stand before in a word, as in regular expressions: nginx keeps both, and reads nothing else into them."""


def tokens(text: str) -> Iterator[tuple[str, bool]]:
    """(token, quoted). Comments are skipped. Raises SyntaxProblem."""
    for n, c in enumerate(text):
        if c not in "\t\n" and not " " <= c <= "~":
            raise SyntaxProblem(f"byte {ord(c):#x} at offset {n}")
    at, end = 0, len(text)
    while at < end:
        c = text[at]
        if c in _SPACE:
            at += 1
        elif c == "#":
            stop = text.find("\n", at)
            at = end if stop < 0 else stop
        elif c in ";{}":
            yield c, False
            at += 1
        elif c in "\"'":
            token, at = _quoted(text, at)
            if at < end and text[at] not in _SPECIAL + ")":
                raise SyntaxProblem("a quote that ends inside a word")
            yield token, True
        else:
            token, at = _word(text, at)
            yield token, False


def _quoted(text: str, at: int) -> tuple[str, int]:
    quote, out = text[at], []
    start = at
    at += 1
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "'", "\\"):
            at += 1
        out.append(text[at])
        at += 1
    if at >= len(text):
        raise SyntaxProblem("a quote that does not end")
    if at - start > TOKEN_LIMIT + 90:
        raise SyntaxProblem("a token too long for nginx")
    return "".join(out), at + 1


def _word(text: str, at: int) -> tuple[str, int]:
    start = at
    while at < len(text) and text[at] not in _SPECIAL:
        if text[at] in "\"'":
            raise SyntaxProblem("a quote inside a word")
        if text[at] == "\\":
            if not _ESCAPED.fullmatch(text[at + 1 : at + 2]):
                raise SyntaxProblem("a backslash before something that has a meaning of its own")
            at += 2
            continue
        if text[at] == "$" and text[at + 1 : at + 2] == "{":
            close = text.find("}", at)
            if close < 0 or not text[at + 2 : close].replace("_", "a").isalnum():
                raise SyntaxProblem("${ without a name and }")
            at = close
        at += 1
    if at - start > TOKEN_LIMIT:
        raise SyntaxProblem("a token too long for nginx")
    return text[start:at], at


def parse(text: str) -> tuple[Directive, ...]:
    """The directives of a file. Raises SyntaxProblem."""
    stream = tokens(text)
    out, closed = _block(stream)
    if closed:
        raise SyntaxProblem("a } too many")
    return out


def _block(stream: Iterator[tuple[str, bool]], keyed: bool = False) -> tuple[tuple[Directive, ...], bool]:
    out: list[Directive] = []
    words: list[str] = []
    for token, is_quoted in stream:
        if is_quoted or token not in (";", "{", "}"):
            if not words and is_quoted and not keyed:
                raise SyntaxProblem("a directive's name in quotes")
            words.append(token)
        elif token == ";":
            if not words:
                raise SyntaxProblem("a ; without a directive")
            out.append(Directive(words[0], tuple(words[1:])))
            words = []
        elif token == "{":
            if not words:
                raise SyntaxProblem("a { without a directive")
            inner, closed = _block(stream, keyed=words[0] in ("map", "geo"))
            if not closed:
                raise SyntaxProblem("a { that is not closed")
            out.append(Directive(words[0], tuple(words[1:]), inner))
            words = []
        else:
            if words:
                raise SyntaxProblem(f"{words[0]} without a ;")
            return tuple(out), True
    if words:
        raise SyntaxProblem(f"{words[0]} without a ;")
    return tuple(out), False


def walk(directives: tuple[Directive, ...]) -> Iterator[Directive]:
    """All directives, blocks included."""
    for d in directives:
        yield d
        if d.block:
            yield from walk(d.block)


def check_snippet(text: str) -> None:
    """A snippet must be complete directives, so that it cannot close the block it stands in. Raises TextError."""
    if "_by_lua_block" in text:
        raise TextError("snippets without *_by_lua_block")
    parse(text)
