"""Typed directive arguments. A value becomes nginx text only through one of these, and each validates for the place it goes to.

What is emitted is a small language (measured on nginx 1.22: what goes in comes out byte for byte): an argument is a bare word of safe
characters, or double-quoted with only `\\` and `"` escaped; a `$` only from `Variable`, a literal dollar through the constant variable
`$literal_dollar` (a `geo` in the http policy); printable ASCII; shorter than nginx's 4,096-byte token limit.
Validators match whole strings, ASCII only.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, LiteralString

TOKEN_LIMIT: Final = 4000


class TextError(ValueError):
    """A value that must not become nginx text. The message says what a good one looks like."""


def fullmatch(pattern: str, text: str) -> bool:
    """The one way to validate: the whole string, ASCII only."""
    return re.fullmatch(pattern, text, re.ASCII) is not None


class Argument:
    """One argument, already rendered. Nothing else may be emitted by a template (`compiler/render.py` refuses it)."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Argument) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text})"


def quoted(text: str) -> str:
    """Double-quoted, literal: no variable, no escape sequence is left in it. Raises TextError."""
    if not all(" " <= c <= "~" for c in text):
        raise TextError("only printable ASCII characters are possible here")
    out = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "${literal_dollar}") + '"'
    if len(out) > TOKEN_LIMIT:
        raise TextError(f"longer than {TOKEN_LIMIT} bytes")
    return out


class Text(Argument):
    """Any text, literally, where nginx gives no character a meaning (header values, realms).

    Not for places where a leading `~`, `=`, `@` or a scheme counts.
    """

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(quoted(text))


class Number(Argument):
    """A decimal number within bounds."""

    __slots__ = ()

    def __init__(self, value: int, *, low: int = 0, high: int = 2**31 - 1) -> None:
        if isinstance(value, bool) or not low <= value <= high:
            raise TextError(f"a number from {low} to {high}")
        super().__init__(str(value))


class Seconds(Argument):
    """A time, from a number of seconds."""

    __slots__ = ()

    def __init__(self, value: int, *, low: int = 0, high: int = 10**8) -> None:
        if isinstance(value, bool) or not low <= value <= high:
            raise TextError(f"a number of seconds from {low} to {high}")
        super().__init__(f"{value}s")


class Duration(Argument):
    """An nginx time as written: `10m`, `1h`, `500ms`."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        if not fullmatch(r"\d{1,9}(ms|[smhdwMy])?", text):
            raise TextError("a time such as 10m or 60s")
        super().__init__(text)


_UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


MOST_BYTES: Final = 2**40


def size_bytes(text: str) -> int:
    """The bytes of an nginx size: digits and k, m or g in either case. Raises TextError."""
    if not fullmatch(r"\d{1,13}[kKmMgG]?", text):
        raise TextError("a size such as 8k or 10m")
    unit = text[-1].lower() if text[-1].isalpha() else ""
    value = int(text.rstrip("kKmMgG")) * _UNITS[unit]
    if value > MOST_BYTES:
        raise TextError("a size of at most 1024g")
    return value


class Size(Argument):
    """An nginx size; `g` is written in `m` because not every directive knows it."""

    __slots__ = ()

    def __init__(self, text: str, *, low: int = 0) -> None:
        value = size_bytes(text)
        if value < low:
            raise TextError(f"a size of at least {low} bytes")
        super().__init__(text.lower() if text[-1] not in "gG" else f"{value // 1024**2}m")


class Flag(Argument):
    """`on` or `off`."""

    __slots__ = ()

    def __init__(self, value: bool) -> None:
        super().__init__("on" if value else "off")


class Keyword(Argument):
    """One word of a closed list."""

    __slots__ = ()

    def __init__(self, word: str, allowed: frozenset[str] | set[str] | tuple[str, ...]) -> None:
        if word not in allowed or not fullmatch(r"[A-Za-z0-9._-]+", word):
            raise TextError("one of " + ", ".join(sorted(allowed)))
        super().__init__(word)


class Name(Argument):
    """A name of our own making inside nginx: zones, named locations, upstreams."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        if not fullmatch(r"[a-z][a-z0-9_]{0,60}", text):
            raise TextError("a short lower-case name")
        super().__init__(text)


class HeaderName(Argument):
    """An HTTP field name (RFC 9110 token, without the characters nginx could misread)."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        if not fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", text):
            raise TextError("a header name such as X-My-Header")
        super().__init__(text)


class HeaderVariable(Argument):
    """`$http_...`: the request header of this name."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__("$http_" + HeaderName(name).text.lower().replace("-", "_"))


class Cidr(Argument):
    """An address or a network, in its canonical form."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(canonical_cidr(text))


def canonical_cidr(text: str) -> str:
    """`10.1.2.3/8` -> `10.0.0.0/8`, `10.0.0.1` -> `10.0.0.1`. Raises TextError."""
    try:
        if not fullmatch(r"[0-9A-Fa-f.:/]{2,49}", text):
            raise ValueError(text)
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise TextError("an address or network such as 10.0.0.0/8 or 2001:db8::1") from None
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


class Path(Argument):
    """An absolute file path of this node, from its settings: never from an object."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        if not text.startswith("/") or ".." in text.split("/"):
            raise TextError("an absolute path without ..")
        super().__init__(quoted(text))


class Ciphers(Argument):
    """An OpenSSL cipher list."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        if not fullmatch(r"[A-Za-z0-9:+!@=_.-]{1,2000}", text):
            raise TextError("an OpenSSL cipher list such as ECDHE-RSA-AES128-GCM-SHA256:HIGH")
        super().__init__(quoted(text))


class LogFormat(Argument):
    """A log format of the administrator's: variables stay variables, if nginx or Sluice defines them; everything else is literal."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        text = " ".join(text.split("\n"))
        names = re.findall(r"\$\{?([A-Za-z0-9_]*)", text, re.ASCII)
        unknown = [n for n in names if not self._knows(n)]
        if unknown:
            raise TextError(f"known variables only; ${unknown[0]} is not one")
        if not all(" " <= c <= "~" for c in text) or len(text) > TOKEN_LIMIT - 100:
            raise TextError("printable ASCII of at most 3,900 bytes")
        if re.search(r"\$\{(?![A-Za-z0-9_]+\})", text, re.ASCII):
            raise TextError("balanced braces after $")
        super().__init__('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')

    @staticmethod
    def _knows(name: str) -> bool:
        return known_variable(name)


class StreamLogFormat(LogFormat):
    """The same for TCP and UDP services, where nginx has other variables."""

    __slots__ = ()

    @staticmethod
    def _knows(name: str) -> bool:
        return name in _KNOWN_IN_STREAM


_KNOWN_IN_STREAM: Final = frozenset(
    """binary_remote_addr bytes_received bytes_sent connection hostname msec nginx_version pid protocol proxy_protocol_addr
    proxy_protocol_port proxy_protocol_server_addr proxy_protocol_server_port proxy_upstream_name realip_remote_addr
    realip_remote_port remote_addr remote_port server_addr server_port session_time status time_iso8601 time_local upstream_addr
    upstream_bytes_received upstream_bytes_sent upstream_connect_time upstream_first_byte_time upstream_session_time""".split()
)
_KNOWN: Final = frozenset(
    """args body_bytes_sent bytes_sent connection connection_requests connections_active connection_time content_length content_type
    document_uri host hostname https is_args msec nginx_version pid pipe proxy_protocol_addr proxy_protocol_port query_string
    realip_remote_addr realip_remote_port remote_addr remote_port remote_user request request_body request_completion request_filename
    request_id request_length request_method request_time request_uri scheme server_addr server_name server_port server_protocol
    ssl_cipher ssl_ciphers ssl_curves ssl_client_fingerprint ssl_client_i_dn ssl_client_s_dn ssl_client_serial ssl_client_verify
    ssl_early_data ssl_protocol ssl_server_name ssl_session_id ssl_session_reused status tcpinfo_rtt tcpinfo_rttvar tcpinfo_snd_cwnd
    tcpinfo_rcv_space time_iso8601 time_local upstream_addr upstream_bytes_received upstream_bytes_sent upstream_cache_status
    upstream_connect_time upstream_header_time upstream_response_length upstream_response_time upstream_status uri proxy_host proxy_port
    proxy_add_x_forwarded_for namespace ingress_name service_name service_port location_path proxy_upstream_name
    proxy_alternative_upstream_name req_id best_http_host pass_access_scheme pass_port binary_remote_addr""".split()
)


def known_variable(name: str) -> bool:
    """Whether nginx (1.22) or Sluice defines `$name`; one unknown name would refuse the whole configuration."""
    return name in _KNOWN or fullmatch(
        r"(http|sent_http|upstream_http|arg|cookie|upstream_cookie|sent_trailer)_[a-z0-9_]{1,100}", name.lower()
    )


class Constant(Argument):
    """nginx text of our own: only literals of this code base, which type checkers enforce."""

    __slots__ = ()

    def __init__(self, text: LiteralString) -> None:
        super().__init__(text)


class RequestKey(Argument):
    """limit-conn-zone-variable and its like: known variables and nothing else, after a constant prefix."""

    __slots__ = ()

    def __init__(self, text: str, *, prefix: LiteralString = "") -> None:
        names = re.findall(r"[a-z0-9_]+", text)
        if not fullmatch(r"(\$[a-z0-9_]+|\$\{[a-z0-9_]+\})+", text) or not all(known_variable(n) for n in names):
            raise TextError("known variables such as $binary_remote_addr or $http_x_api_key")
        super().__init__(f'"{prefix}{text}"')


class Snippet(Argument):
    """Directives of a tenant whom the administrator has allowed to write them.

    The one raw text there is; `strict.check_snippet` gates it.
    """

    __slots__ = ()

    def __init__(self, text: str) -> None:
        from services.shared.nginxtext.strict import check_snippet

        check_snippet(text)
        super().__init__(text.rstrip() + "\n")
