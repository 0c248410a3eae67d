"""Types of values in the controller ConfigMap: text in, a typed value out, or a TextError that says what a good one looks like."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

from services.shared.nginxtext import arguments as arg
from services.shared.nginxtext.arguments import TextError


class PartlyUsable(TextError):
    """Some of a value is good, and `value` is that."""

    def __init__(self, words: str, value: Any) -> None:
        super().__init__(words)
        self.value = value


def boolean(text: str) -> bool:
    """Go's strconv.ParseBool, as ingress-nginx reads it."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False", ""):
        return False
    raise TextError("true or false")


def switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise TextError("on or off")
    return text == "on"


def integer(low: int = 0, high: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not arg.fullmatch(r"-?(0[xX][0-9A-Fa-f]{1,8}|0[0-7]{0,10}|[1-9][0-9]{0,9})", text):
            raise TextError(f"a number from {low} to {high}")
        negative, digits = text.startswith("-"), text.lstrip("-")
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
        value = int(digits, base) * (-1 if negative else 1)
        if not low <= value <= high:
            raise TextError(f"a number from {low} to {high}")
        return value

    return parse


def size(text: str) -> str:
    arg.size_bytes(text)
    return text


def size_between(low: str, high: str) -> Callable[[str], str]:
    """Within what nginx takes, and a worker has room for."""

    def parse(text: str) -> str:
        if not arg.size_bytes(low) <= arg.size_bytes(text) <= arg.size_bytes(high):
            raise TextError(f"a size from {low} to {high}")
        return text

    return parse


buffer_size = size_between("1k", "16m")


def optional_buffer_size(text: str) -> str:
    return buffer_size(text) if text else ""


def duration(units: str) -> Callable[[str], str]:
    """`units`: those that the directive knows. One in milliseconds has no months and years, one in seconds no `ms`."""

    def parse(text: str) -> str:
        if not arg.fullmatch(rf"[0-9]{{1,7}}({units})?", text):
            raise TextError(f"a number and a unit ({units.replace('|', ', ')})")
        return arg.Duration(text).text

    return parse


def words(text: str) -> tuple[str, ...]:
    """Comma separated, trimmed."""
    return tuple(w for w in (part.strip() for part in text.split(",")) if w)


T = TypeVar("T")


def each(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A list, comma separated. Items that are no good are left out and named; a list of nothing else is no good."""

    def parse_all(text: str) -> tuple[T, ...]:
        good: dict[T, None] = {}
        wrong = ""
        for word in words(text):
            try:
                good[parse(word)] = None
            except TextError as error:
                wrong = wrong or str(error)
        if wrong and not good:
            raise TextError(wrong)
        if wrong:
            raise PartlyUsable(wrong, tuple(good))
        return tuple(good)

    return parse_all


def _sorted(parse: Callable[[str], tuple[Any, ...]]) -> Callable[[str], tuple[Any, ...]]:
    def parse_sorted(text: str) -> tuple[Any, ...]:
        try:
            return tuple(sorted(parse(text)))
        except PartlyUsable as error:
            raise PartlyUsable(str(error), tuple(sorted(error.value))) from None

    return parse_sorted


cidrs = _sorted(each(arg.canonical_cidr))


def trusted(text: str) -> tuple[str, ...]:
    """proxy-real-ip-cidr: without a good item nobody is trusted, instead of everybody."""
    try:
        return cidrs(text)
    except PartlyUsable:
        raise
    except TextError as error:
        raise PartlyUsable(f"{error} (nobody is trusted)", ()) from None


def header(text: str) -> str:
    return arg.HeaderName(text).text


headers = each(header)


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise TextError("one of " + ", ".join(allowed))
        return text

    return parse


def _error_code(text: str) -> int:
    if not arg.fullmatch(r"[0-9]{1,4}", text) or not interceptable(int(text)):
        raise TextError("statuses from 300 to 599 (without 499, which nginx has for clients that went away)")
    return int(text)


error_codes = _sorted(each(_error_code))
"""Statuses that nginx can intercept; as ingress-nginx does, others are left out and the rest counts."""


def interceptable(code: int) -> bool:
    """What error_page takes."""
    return 300 <= code <= 599 and code != 499


def redirect_code(text: str) -> int:
    code = integer(301, 308)(text)
    if code not in (301, 302, 307, 308):
        raise TextError("301, 302, 307 or 308")
    return code


UPSTREAM_FAILURES: Final = (
    "error timeout invalid_header http_500 http_502 http_503 http_504 http_403 http_404 http_429 non_idempotent off"
).split()


def failures(text: str) -> tuple[str, ...]:
    found = text.split()
    if not found or not set(found) <= set(UPSTREAM_FAILURES):
        raise TextError("blank-separated: " + " ".join(UPSTREAM_FAILURES))
    return tuple(w for w in UPSTREAM_FAILURES if w in found)


def protocols(text: str) -> tuple[str, ...]:
    found = text.split()
    if not found or not set(found) <= {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}:
        raise TextError("blank-separated: TLSv1.2 TLSv1.3")
    return tuple(sorted(set(found)))


def _pattern(text: str) -> str:
    """One item in nginx' map syntax: `~regex`, `~*regex`, or a literal; kept as `=literal` or a bounded PCRE, which is matched without case
    unless it says otherwise."""
    from services.shared.nginxtext.regex import LIMIT, bounded

    if not text.startswith("~"):
        return f"={text}"
    if text.startswith("~*"):
        return bounded(text[2:])
    return f"{LIMIT}(?-i){bounded(text[1:]).removeprefix(LIMIT)}"


patterns = each(_pattern)


def buffers(text: str) -> str:
    count, _, each = text.partition(" ")
    integer(1, 256)(count)
    arg.Size(each.strip(), low=512)
    return f"{count} {each.strip()}"


def mime_types(text: str) -> tuple[str, ...]:
    found = text.split()
    if not all(arg.fullmatch(r"\*|[A-Za-z0-9.+-]{1,60}/[A-Za-z0-9.+*-]{1,80}", w) for w in found):
        raise TextError("blank-separated media types such as text/css")
    return tuple(w for w in dict.fromkeys(found) if w != "text/html")  # nginx compresses it always, and warns when told


def log_format(text: str) -> str:
    arg.LogFormat(text)
    return text


def stream_log_format(text: str) -> str:
    arg.StreamLogFormat(text)
    return text


def request_key(text: str) -> str:
    arg.RequestKey(text)
    return text


def ciphers(text: str) -> str:
    """An OpenSSL cipher list of which at least one cipher exists: nginx refuses any other."""
    arg.Ciphers(text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(text)
    except ssl.SSLError:
        raise TextError("a list with a cipher that OpenSSL knows") from None
    return text


CURVES: Final = frozenset(
    "X25519 X448 prime256v1 P-256 secp256r1 secp384r1 P-384 secp521r1 P-521 secp224r1 P-224 secp256k1 brainpoolP256r1 brainpoolP384r1 "
    "brainpoolP512r1 ffdhe2048 ffdhe3072 ffdhe4096 ffdhe6144 ffdhe8192".split()
)
"""Groups of TLS under OpenSSL 3's names; it refuses a list with any other word."""


def curves(text: str) -> str:
    if text != "auto" and not set(text.split(":")) <= CURVES:
        raise TextError("auto, or curves that OpenSSL knows, separated by colons")
    return text


def processes(text: str) -> str:
    return text if text == "auto" else str(integer(1, 1024)(text))


def media_type(text: str) -> str:
    if not arg.fullmatch(r"[A-Za-z0-9.+-]{1,60}/[A-Za-z0-9.+-]{1,80}", text):
        raise TextError("a media type such as text/html")
    return text


def risk(text: str) -> str:
    for level in ("Low", "Medium", "High", "Critical"):
        if text.lower() == level.lower():
            return level
    return "Low"  # unknown text means Low, as in ingress-nginx
