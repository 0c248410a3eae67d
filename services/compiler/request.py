"""What nginx makes of a URL before any row is looked up: the host, and the path, decoded once, slashes merged, dots resolved."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_AUTHORITY: Final = re.compile(r"[^/?]*")
_ENCRYPTED: Final = ("https", "wss", "grpcs")
_METHOD: Final = re.compile(r"[A-Z_-]+", re.ASCII)
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{2}")


class Request(Struct, frozen=True, kw_only=True):
    """As the router sees it. `refused`: nginx answers with this status itself and no row is looked up; `why` says what it does not take."""

    scheme: str
    host: bytes
    path: bytes
    refused: int = 0
    why: str = ""


class _Bad(Exception):
    """nginx answers 400."""


def request_of(url: str, method: str = "GET") -> Request:
    """The request that a client sends for a URL: without its fragment, with the host in the Host header."""
    url = url.partition("#")[0]
    start = _SCHEME.match(url)
    scheme = "https" if start and start[1].lower() in _ENCRYPTED else "http"
    rest = url[start.end() :] if start else url
    found = _AUTHORITY.match(rest)
    authority = found[0] if found else ""
    target = _bytes(rest[len(authority) :])
    host, path = _bytes(_ascii(authority.rpartition("@")[2])), target.partition(b"?")[0] or b"/"
    try:
        if not _METHOD.fullmatch(method):
            raise _Bad(f"{method!r} is not a method")
        if any(c <= 0x20 or c == 0x7F for c in target):
            raise _Bad("a space or control character stands in the URL unencoded")
        seen = Request(scheme=scheme, host=_host(host), path=normalized(path))
    except _Bad as error:
        return Request(scheme=scheme, host=host, path=path, refused=400, why=str(error))
    if method in ("CONNECT", "TRACE"):
        return Request(scheme=scheme, host=seen.host, path=seen.path, refused=405, why=f"the method {method}")
    return seen


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _ascii(host: str) -> str:
    """With labels in other letters as clients send them: `xn--...`."""
    return ".".join(label if label.isascii() else _punycode(label) for label in host.split("."))


def _punycode(label: str) -> str:
    try:
        return label.encode("idna").decode()
    except UnicodeError:
        return label


def _host(header: bytes) -> bytes:
    """nginx's $host: lower case, without port and final dot."""
    if b".." in header:
        raise _Bad("two dots follow each other in the host")
    if any(c <= 0x20 or c == 0x7F for c in header):
        raise _Bad("a space or control character stands in the host")
    name = (header[: header.find(b"]") + 1] or header) if header.startswith(b"[") else header.partition(b":")[0]
    if header.rfind(b".") == len(name) - 1:
        name = name[:-1]
    if not name:
        raise _Bad("there is no host")
    return name.lower()


def normalized(path: bytes) -> bytes:
    """nginx's $uri of a path. What comes out of an escape counts as slash or dot, but is not decoded again. Raises _Bad."""
    segments: list[bytes] = []
    segment = bytearray()
    for c in [*_decoded(path.removeprefix(b"/")), None]:
        if c is not None and c != b"/":
            segment += c
            continue
        name, last = bytes(segment), c is None
        segment.clear()
        if name == b"..":
            if not segments:
                raise _Bad("the path leads above /")
            segments.pop()
        if last:
            segments.append(b"" if name in (b".", b"..") else name)
        elif name not in (b"", b".", b".."):
            segments.append(name)
    return b"/" + b"/".join(segments)


def _decoded(path: bytes) -> list[bytes]:
    """Byte by byte."""
    out: list[bytes] = []
    at = 0
    while at < len(path):
        if path[at : at + 1] != b"%":
            out.append(path[at : at + 1])
            at += 1
            continue
        digits = path[at + 1 : at + 3]
        if not _HEX.fullmatch(digits):
            raise _Bad("a % without two hex digits after it")
        if digits == b"00":
            raise _Bad("%00 in the path")
        out.append(bytes([int(digits, 16)]))
        at += 3
    return out
