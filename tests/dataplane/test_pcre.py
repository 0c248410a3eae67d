"""What `explain` makes of an expression is what PCRE makes of it: the library that nginx's Lua uses is asked itself."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator

import pytest

from services.compiler import pcre
from services.shared.nginxtext.arguments import TextError
from services.shared.nginxtext.regex import check_regex

pytestmark = pytest.mark.nginx

CASELESS = 1
Span = tuple[int, int] | None | str
Search = Callable[[str, bytes], Span]

ATOMS = "a b B / 0 1 - . \\d \\w \\s \\h \\v \\W \\D \\H \\b \\B \\. \\/ \\x41 \\xe4 \\n \\1 \\2 \\12 \\0 \\101 [ab] [^a/] [a-c] [\\d-z] []a] [^]a] [^\\W]".split()
ATOMS += "[[:alpha:]] [[:^upper:]x] [a-] [--a] [\\b\\h] [&&a] [a||b] [a[b] [a~~b] [\\1] [\\w-a] [+--] [\\x41-\\x5a] { } {a} {e} {,2} # & ~ \" ' < > _ % @ $ ^ | \\A \\Z \\z".split()
REPEATS = ["", "", "", "", "", "", "*", "+", "?", "{2}", "{1,2}", "{0,}", "*?", "+?", "??", "*+", "++", "?+", "{1,2}?", "{2}+"]
GROUPS = ["(", "(", "(?:", "(?=", "(?!", "(?<!", "(?>", "(?i:", "(?-i:", "(?|"]
TEXT = [
    b"a",
    b"b",
    b"A",
    b"B",
    b"/",
    b"0",
    b"1",
    b"-",
    b".",
    b"\n",
    b" ",
    b"\t",
    b"\xa0",
    b"\xe4",
    b"\xc3\xa4",
    b"z",
    b"{",
    b"}",
    b"{e}",
    b"{a}",
    b",2",
    b"\x01",
]
TEXT += [b"[", b"]", b"&", b"|", b"#", b"\\", b"\x0b", b"\x85", b"_", b"%", b"<"]
EXOTIC = 0.002
"""Of the pairs: empty loops inside atomic groups and the like, which no path has."""


@pytest.fixture(scope="module")
def real() -> Search:
    library = ctypes.CDLL("libpcre.so.3")
    compile_, exec_ = library.pcre_compile, library.pcre_exec
    compile_.restype = ctypes.c_void_p
    compile_.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_int), ctypes.c_void_p]
    exec_.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.POINTER(ctypes.c_int), ctypes.c_int]

    def search(pattern: str, text: bytes) -> Span:
        error, at, found = ctypes.c_char_p(), ctypes.c_int(), (ctypes.c_int * 30)()
        code = compile_(pattern.encode(), CASELESS, ctypes.byref(error), ctypes.byref(at), None)
        if not code:
            return "refused"
        number = exec_(code, None, text, len(text), 0, 0, found, 30)
        return None if number == -1 else (found[0], found[1]) if number >= 0 else "gave up"

    return search


def _told(pattern: str, text: bytes) -> Span:
    try:
        found = pcre.search(pattern, text, seconds=5)
    except pcre.Unknown:
        return "refused"
    return found.span() if found else None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^/a|/b", b"/x/b"),
        ("^/caf.$", "/caf\u00e9".encode()),
        ("^/caf..$", "/caf\u00e9".encode()),
        ("^/[^a]", b"/\xff"),
        ("^/a$", b"/a\n"),
        ("^/a\\z", b"/a\n"),
        ("^/a\\Z", b"/a\n"),
        ("^/a.b", b"/a\nb"),
        ("^/a\\hb", b"/a\xa0b"),
        ("^/a{b}", b"/a{b}"),
        ("^/a{,2}", b"/a{,2}"),
        ("^/[a-c&&b]", b"/&"),
        ("^/[[:upper:]]", b"/a"),
        ("^/\\101", b"/a"),
        ("^/(?-i)a", b"/A"),
        ("^/(a|b)\\1", b"/bb"),
        ("^/(?<=a+)b", b"/ab"),
        ("^/" + "(" * 250 + "a" + ")" * 250, b"/a"),
        ("^/" + "(" * 251 + "a" + ")" * 251, b"/a"),
        ("^/\u00e9", "/\u00e9".encode()),
    ],
)
def test_a_pattern(real: Search, pattern: str, text: bytes) -> None:
    assert _told(pattern, text) == real(pattern, text)


def _pattern(chance: random.Random, depth: int = 0) -> str:
    return "".join(_piece(chance, depth) for _ in range(chance.randint(1, 4)))


def _piece(chance: random.Random, depth: int) -> str:
    if depth < 3 and chance.random() < 0.2:
        return chance.choice(GROUPS) + _pattern(chance, depth + 1) + ")" + chance.choice(REPEATS)
    return chance.choice(ATOMS) + chance.choice(REPEATS)


def _cases(chance: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    while count:
        pattern = _pattern(chance)
        try:
            check_regex(pattern)
        except TextError:
            continue
        yield pattern, b"".join(chance.choice(TEXT) for _ in range(chance.randint(0, 8)))
        count -= 1


def test_patterns_at_random(real: Search) -> None:
    cases = list(_cases(random.Random(3), 5000))
    wrong = [(p, t, _told(p, t), real(p, t)) for p, t in cases if _told(p, t) != real(p, t)]
    assert len(wrong) <= EXOTIC * len(cases), "\n".join(map(str, wrong))
