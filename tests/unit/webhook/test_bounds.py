"""Hostile JSON: bounded before it is built."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.webhook.bounds import MAX_BODY_BYTES, MAX_DEPTH, BadJson, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=30,
)


@given(VALUES)
def test_ordinary_json_passes_unchanged(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")) == value


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        parse(body)
    except BadJson as error:
        assert str(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep"),
        (b'{"a":' * 500_000, "deep"),
        (b"[" + b"1," * 800_000 + b"1]", "values"),
        (b"[" + b"[]," * 400_000 + b"1]", "values"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "digits"),
        (b'{"a": -' + b"9" * 41 + b"}", "digits"),
        (b'{"a": 1e9999}', "range"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": 1, "\\u0061": 2}', "twice"),
        (b'{"a": {"b": [{"c": 1, "c": 1}]}}', "twice"),
        (b"\xff", "UTF-8"),
        (b"", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'"' + b'\\"' * 1_400_000, "not JSON"),
        (b'"' * 1_500_001, "values"),
        (b" " * (MAX_BODY_BYTES + 1), "bytes"),
    ],
)
def test_bombs_are_refused_without_being_built(body: bytes, said: str) -> None:
    # The budget is for a loaded machine: an unbounded parse of these takes minutes or all memory.
    started = time.process_time()
    with pytest.raises(BadJson, match=said):
        parse(body)
    assert time.process_time() - started < 5


def test_brackets_and_digits_in_strings_are_text() -> None:
    value = {"a": "[" * 500 + '"' * 5 + "\\" + "9" * 500}

    assert parse(json.dumps(value).encode()) == value


def test_an_ingress_of_one_and_a_half_megabytes_passes_twice() -> None:
    """An UPDATE has the object and what it was."""
    backend = {"service": {"name": "a", "port": {"number": 80}}}
    paths = [{"path": f"/{n}", "pathType": "Prefix", "backend": backend} for n in range(16_500)]
    spec = {"rules": [{"host": "a.example.com", "http": {"paths": paths}}]}
    body = json.dumps({"request": {"object": {"spec": spec}, "oldObject": {"spec": spec}}}, separators=(",", ":")).encode()
    assert len(body) > 2 * 1_300_000
    assert parse(body)["request"]["object"]["spec"] == spec
