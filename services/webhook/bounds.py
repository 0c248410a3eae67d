"""Hostile JSON in; a bounded value out, or the reason why not. Everything is counted before anything is built."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

MAX_BODY_BYTES: Final = 3 << 20
"""The largest legal object is 1.5 MiB, and an AdmissionReview may hold it twice (ingress-nginx reads 9 MB)."""
MAX_DEPTH: Final = 64
MAX_TOKENS: Final = 700_000
"""Strings, numbers and brackets; twice 17,000 paths of the plainest kind have as many."""
MAX_NUMBER_BYTES: Final = 40

_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]|[-0-9][-+.0-9eE]*+', re.DOTALL)
"""An unterminated string takes the rest, so that every byte is looked at once."""


class BadJson(Exception):
    """Not JSON, or beyond the bounds. The message never quotes more than a key."""


def parse(body: bytes) -> Any:
    """`body` as Python values. Raises BadJson."""
    _count(body)
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except UnicodeDecodeError as error:
        raise BadJson("not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise BadJson(f"not JSON: {error}") from error


def _count(body: bytes) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise BadJson(f"more than {MAX_BODY_BYTES} bytes")
    depth = 0
    for count, match in enumerate(_TOKEN.finditer(body)):
        if count >= MAX_TOKENS:
            raise BadJson(f"more than {MAX_TOKENS} values")
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadJson(f"nested more than {MAX_DEPTH} deep")
        elif first in b"]}":
            depth -= 1
        elif first != 0x22 and match.end() - match.start() > MAX_NUMBER_BYTES:
            raise BadJson(f"a number of more than {MAX_NUMBER_BYTES} digits")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        # Two readers may take different ones: what is checked here would not be what is used there.
        raise BadJson("a key occurs twice in one object")
    return mapping


def _constant(name: str) -> NoReturn:
    raise BadJson(f"{name} is not JSON")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise BadJson("a number out of range")
    return number
