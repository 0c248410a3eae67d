"""Rows that a version may bring, and those that are refused before anything is touched."""

from __future__ import annotations

import contextlib
import hashlib

import pytest

from services.applier.guard import Malformed, look

HASH = hashlib.sha256(b"users").hexdigest()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"h/a": b"{}", f"f/{HASH}": b'{"content":"users"}'}, ""),
        ({f"f/{HASH}": b'{"content":"others"}'}, "not the file"),
        ({f"f/{HASH}": b'{"sealed":"x"}'}, "not the file"),
        ({"f/../x": b'{"content":"users"}'}, "not the file"),
        ({"h/a\nb": b"{}"}, "control characters"),
        ({"": b"{}"}, "none at all"),
        ({"h/a": b"{\n}"}, "one line"),
        ({"p:h/a": b"{}"}, "only the node"),
        ({"n/a": b"{}"}, "only the node"),
    ],
)
def test_what_must_reach_neither_disk_nor_nginx(rows: dict[str, bytes], words: str) -> None:
    with pytest.raises(Malformed, match=words) if words else contextlib.nullcontext():
        look(rows)
