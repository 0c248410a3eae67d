"""What nginx makes of a URL; tests/dataplane/test_explain.py asks nginx itself."""

from __future__ import annotations

import pytest

from services.compiler.request import request_of


@pytest.mark.parametrize(
    ("url", "scheme", "host", "path"),
    [
        ("https://Shop.Example.com/a?b#c", "https", b"shop.example.com", b"/a"),
        ("shop.example.com:8080/x?u=http://other/", "http", b"shop.example.com", b"/x"),
        ("wss://user:secret@shop.example.com.", "https", b"shop.example.com", b"/"),
        ("http://shop.example.com?q=1", "http", b"shop.example.com", b"/"),
        ("http://[2001:DB8::1]:80/", "http", b"[2001:db8::1]", b"/"),
        ("http://b\u00fccher.example/\u00e4", "http", b"xn--bcher-kva.example", b"/\xc3\xa4"),
        ("h/a//b/./c/../d/", "http", b"h", b"/a/b/d/"),
        ("h/a/%2e%2E/b%2F/c", "http", b"h", b"/b/c"),
        ("h/%252e%2523/%23%3f%25", "http", b"h", b"/%2e%23/#?%"),
        ("h/a/..", "http", b"h", b"/"),
        ("h/a/b/..?c", "http", b"h", b"/a/"),
        ("h/.../..a", "http", b"h", b"/.../..a"),
    ],
)
def test_a_request(url: str, scheme: str, host: bytes, path: bytes) -> None:
    found = request_of(url)
    assert (found.refused, found.scheme, found.host, found.path) == (0, scheme, host, path)


@pytest.mark.parametrize(
    ("url", "method", "status", "why"),
    [
        ("h/..", "GET", 400, "above /"),
        ("h/a/../../b", "GET", 400, "above /"),
        ("h/%2e%2e/a", "GET", 400, "above /"),
        ("h/%", "GET", 400, "hex digits"),
        ("h/%4", "GET", 400, "hex digits"),
        ("h/%g0", "GET", 400, "hex digits"),
        ("h/a%00", "GET", 400, "%00"),
        ("h/a b", "GET", 400, "space"),
        ("h/a?b c", "GET", 400, "space"),
        ("h/a\x7f", "GET", 400, "control"),
        ("http:///a", "GET", 400, "no host"),
        ("a..b/", "GET", 400, "dots"),
        ("a b/", "GET", 400, "space"),
        ("h/", "get", 400, "method"),
        ("h/", "TRACE", 405, "TRACE"),
    ],
)
def test_what_nginx_refuses(url: str, method: str, status: int, why: str) -> None:
    found = request_of(url, method)
    assert found.refused == status
    assert why in found.why
