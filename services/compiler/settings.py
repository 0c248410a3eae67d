"""The controller ConfigMap: one small entry a key, typed values out, problems as values.

Lenient as ingress-nginx is: one bad value is reported and its last good value (or the default) stays; the others apply. Unknown keys
are named with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.compiler import known
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.nginxtext import arguments as arg
from services.shared.nginxtext.arguments import TextError

LOG_FORMAT: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent" '
    "$request_length $request_time [$proxy_upstream_name] [$proxy_alternative_upstream_name] $upstream_addr "
    "$upstream_response_length $upstream_response_time $upstream_status $req_id"
)
CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:DHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256"
)
GZIP_TYPES: Final = (
    "application/atom+xml application/javascript application/x-javascript application/json application/rss+xml "
    "application/vnd.ms-fontobject application/x-font-ttf application/x-web-app-manifest+json application/xhtml+xml application/xml "
    "font/opentype image/svg+xml image/x-icon text/css text/javascript text/plain text/x-component"
)


class GlobalSettings(Struct, frozen=True, kw_only=True):
    """The ConfigMap's keys with underscores; defaults are ingress-nginx's.

    Sizes and times are as nginx writes them; ints that are times are seconds.
    """

    # what locations inherit (annotations replace it)
    proxy_body_size: str = "1m"
    proxy_buffer_size: str = "4k"
    proxy_buffering: bool = False
    proxy_buffers_number: int = 4
    proxy_busy_buffers_size: str = ""
    proxy_connect_timeout: int = 5
    proxy_send_timeout: int = 60
    proxy_read_timeout: int = 60
    proxy_request_buffering: bool = True
    proxy_http_version: str = "1.1"
    proxy_max_temp_file_size: str = "1024m"
    proxy_next_upstream: tuple[str, ...] = ("error", "timeout")
    proxy_next_upstream_tries: int = 3
    proxy_next_upstream_timeout: int = 0
    retry_non_idempotent: bool = False
    ssl_redirect: bool = True
    force_ssl_redirect: bool = False
    preserve_trailing_slash: bool = False
    use_port_in_redirects: bool = False
    load_balance: str = "round_robin"
    service_upstream: bool = False
    whitelist_source_range: tuple[str, ...] = ()
    denylist_source_range: tuple[str, ...] = ()
    custom_http_errors: tuple[int, ...] = ()
    disable_proxy_intercept_errors: bool = False
    no_tls_redirect_locations: tuple[str, ...] = ("/.well-known/acme-challenge",)
    no_auth_locations: tuple[str, ...] = ("/.well-known/acme-challenge",)
    # what Lua acts on
    http_redirect_code: int = 308
    block_cidrs: tuple[str, ...] = ()
    block_user_agents: tuple[str, ...] = ()
    block_referers: tuple[str, ...] = ()
    skip_access_log_urls: tuple[str, ...] = ()
    enable_access_log_for_default_backend: bool = False
    # headers
    use_forwarded_headers: bool = False
    compute_full_forwarded_for: bool = False
    forwarded_for_header: str = "X-Forwarded-For"
    enable_real_ip: bool = False
    proxy_real_ip_cidr: tuple[str, ...] = ("0.0.0.0/0",)
    generate_request_id: bool = True
    proxy_add_original_uri_header: bool = False
    hide_headers: tuple[str, ...] = ()
    hsts: bool = True
    hsts_max_age: int = 31536000
    hsts_include_subdomains: bool = True
    hsts_preload: bool = False
    server_tokens: bool = False
    allow_backend_server_header: bool = False
    enable_underscores_in_headers: bool = False
    ignore_invalid_headers: bool = True
    # http
    keep_alive: int = 75
    keep_alive_requests: int = 1000
    client_header_timeout: int = 60
    client_body_timeout: int = 60
    client_header_buffer_size: str = "1k"
    client_body_buffer_size: str = "8k"
    large_client_header_buffers: str = "4 8k"
    http2_max_concurrent_streams: int = 128
    upstream_keepalive_connections: int = 320
    upstream_keepalive_requests: int = 10000
    upstream_keepalive_time: str = "1h"
    upstream_keepalive_timeout: int = 60
    use_gzip: bool = False
    gzip_level: int = 1
    gzip_min_length: int = 256
    gzip_types: tuple[str, ...] = tuple(GZIP_TYPES.split())
    limit_req_status_code: int = 503
    limit_conn_status_code: int = 503
    limit_conn_zone_variable: str = "$binary_remote_addr"
    log_format_upstream: str = LOG_FORMAT
    log_format_escape_json: bool = False
    log_format_escape_none: bool = False
    disable_access_log: bool = False
    disable_http_access_log: bool = False
    default_type: str = "text/html"
    relative_redirects: bool = False
    # tls
    ssl_protocols: tuple[str, ...] = ("TLSv1.2", "TLSv1.3")
    ssl_ciphers: str = CIPHERS
    ssl_ecdh_curve: str = "auto"
    ssl_buffer_size: str = "4k"
    ssl_session_cache: bool = True
    ssl_session_cache_size: str = "10m"
    ssl_session_timeout: str = "10m"
    ssl_session_tickets: bool = False
    ssl_early_data: bool = False
    # main and events
    worker_processes: str = "auto"
    worker_shutdown_timeout: str = "240s"
    max_worker_connections: int = 16384
    enable_multi_accept: bool = True
    error_log_level: str = "notice"
    # the compiler itself
    allow_snippet_annotations: bool = False
    annotations_risk_level: str = "High"
    annotation_value_word_blocklist: tuple[str, ...] = ()
    allow_cross_namespace_resources: bool = False
    strict_validate_path_type: bool = True


class Context(StrEnum):
    """Where a key acts, and so what a change of it costs."""

    MAIN = "main"
    HTTP = "http"
    LOCATION = "location policies"
    DATA = "data"
    COMPILER = "compiler"


class Key(Struct, frozen=True, kw_only=True):
    """One key of the ConfigMap."""

    name: str
    parse: Callable[[str], Any]
    """Text -> typed value; raises TextError with what a good value looks like."""
    context: Context

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")


# --- value types


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


def optional_size(text: str) -> str:
    return size(text) if text else ""


def duration(text: str) -> str:
    return arg.Duration(text).text


def words(text: str) -> tuple[str, ...]:
    """Comma separated, trimmed."""
    return tuple(w for w in (part.strip() for part in text.split(",")) if w)


def cidrs(text: str) -> tuple[str, ...]:
    return tuple(sorted({arg.canonical_cidr(w) for w in words(text)}))


def header(text: str) -> str:
    return arg.HeaderName(text).text


def headers(text: str) -> tuple[str, ...]:
    return tuple(header(w) for w in words(text))


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise TextError("one of " + ", ".join(allowed))
        return text

    return parse


def codes(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        return tuple(sorted({integer(low, high)(w) for w in words(text)}))

    return parse


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


def patterns(text: str) -> tuple[str, ...]:
    """nginx map syntax: `~regex`, `~*regex`, or a literal; kept as `=literal` or a bounded PCRE (matched without case)."""
    from services.shared.nginxtext.regex import bounded

    return tuple(bounded(w.lstrip("~").removeprefix("*")) if w.startswith("~") else f"={w}" for w in words(text))


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


def request_key(text: str) -> str:
    arg.RequestKey(text)
    return text


def ciphers(text: str) -> str:
    arg.Ciphers(text)
    return text


def curves(text: str) -> str:
    if not arg.fullmatch(r"auto|[A-Za-z0-9_-]{1,40}(:[A-Za-z0-9_-]{1,40}){0,9}", text):
        raise TextError("auto, or curves such as X25519:prime256v1")
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


_seconds = integer(0, 10**7)
_timeout = integer(1, 10**6)


def _keys(context: Context, **parsers: Callable[[str], Any]) -> list[Key]:
    return [Key(name=name.replace("_", "-"), parse=parse, context=context) for name, parse in parsers.items()]


KEYS: Final[dict[str, Key]] = {
    key.name: key
    for key in [
        *_keys(
            Context.LOCATION,
            proxy_body_size=size,
            proxy_buffer_size=size,
            proxy_buffering=switch,
            proxy_buffers_number=integer(2, 1024),
            proxy_busy_buffers_size=optional_size,
            proxy_connect_timeout=_timeout,
            proxy_send_timeout=_timeout,
            proxy_read_timeout=_timeout,
            proxy_request_buffering=switch,
            proxy_http_version=one_of("1.0", "1.1"),
            proxy_max_temp_file_size=size,
            proxy_next_upstream=failures,
            proxy_next_upstream_tries=integer(0, 100),
            proxy_next_upstream_timeout=_seconds,
            retry_non_idempotent=boolean,
            custom_http_errors=codes(400, 599),
            disable_proxy_intercept_errors=boolean,
            proxy_add_original_uri_header=boolean,
            hide_headers=headers,
            allow_backend_server_header=boolean,
        ),
        *_keys(
            Context.DATA,
            ssl_redirect=boolean,
            force_ssl_redirect=boolean,
            preserve_trailing_slash=boolean,
            use_port_in_redirects=boolean,
            load_balance=one_of("round_robin", "ewma"),
            service_upstream=boolean,
            whitelist_source_range=cidrs,
            denylist_source_range=cidrs,
            no_tls_redirect_locations=words,
            no_auth_locations=words,
            http_redirect_code=redirect_code,
            block_cidrs=cidrs,
            block_user_agents=patterns,
            block_referers=patterns,
            skip_access_log_urls=patterns,
            enable_access_log_for_default_backend=boolean,
        ),
        *_keys(
            Context.HTTP,
            use_forwarded_headers=boolean,
            compute_full_forwarded_for=boolean,
            forwarded_for_header=header,
            enable_real_ip=boolean,
            proxy_real_ip_cidr=cidrs,
            generate_request_id=boolean,
            hsts=boolean,
            hsts_max_age=integer(),
            hsts_include_subdomains=boolean,
            hsts_preload=boolean,
            server_tokens=boolean,
            enable_underscores_in_headers=boolean,
            ignore_invalid_headers=boolean,
            keep_alive=_seconds,
            keep_alive_requests=integer(1),
            client_header_timeout=_timeout,
            client_body_timeout=_timeout,
            client_header_buffer_size=size,
            client_body_buffer_size=size,
            large_client_header_buffers=buffers,
            http2_max_concurrent_streams=integer(1, 100000),
            upstream_keepalive_connections=integer(0, 100000),
            upstream_keepalive_requests=integer(1),
            upstream_keepalive_time=duration,
            upstream_keepalive_timeout=_timeout,
            use_gzip=boolean,
            gzip_level=integer(1, 9),
            gzip_min_length=integer(),
            gzip_types=mime_types,
            limit_req_status_code=integer(400, 599),
            limit_conn_status_code=integer(400, 599),
            limit_conn_zone_variable=request_key,
            log_format_upstream=log_format,
            log_format_escape_json=boolean,
            log_format_escape_none=boolean,
            disable_access_log=boolean,
            disable_http_access_log=boolean,
            default_type=media_type,
            relative_redirects=boolean,
            ssl_protocols=protocols,
            ssl_ciphers=ciphers,
            ssl_ecdh_curve=curves,
            ssl_buffer_size=size,
            ssl_session_cache=boolean,
            ssl_session_cache_size=size,
            ssl_session_timeout=duration,
            ssl_session_tickets=boolean,
            ssl_early_data=boolean,
        ),
        *_keys(
            Context.MAIN,
            worker_processes=processes,
            worker_shutdown_timeout=duration,
            max_worker_connections=integer(64, 1000000),
            enable_multi_accept=boolean,
            error_log_level=one_of("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"),
        ),
        *_keys(
            Context.COMPILER,
            allow_snippet_annotations=boolean,
            annotations_risk_level=risk,
            annotation_value_word_blocklist=words,
            allow_cross_namespace_resources=boolean,
            strict_validate_path_type=boolean,
        ),
    ]
}


def parse_settings(data: Mapping[str, str], previous: GlobalSettings | None = None, name: str = "") -> tuple[GlobalSettings, list[Problem]]:
    """The settings of a ConfigMap's `data`; a bad value leaves `previous`'s in place."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for raw in sorted(data):
        key = KEYS.get(raw) or KEYS.get(raw.lower())
        if key is None:
            problems.append(_unknown(raw, name))
            continue
        try:
            values[key.field] = key.parse(data[raw].strip())
        except TextError as error:
            problems.append(
                Problem(
                    reason=Reason.INVALID_CONFIG_KEY,
                    field=f"data[{key.name}]",
                    message=f'"{printable(data[raw])}" is not {error}; the last good value stays',
                    object=name,
                )
            )
            if previous is not None:
                values[key.field] = getattr(previous, key.field)
    return msgspec.structs.replace(GlobalSettings(), **values), problems


def _unknown(raw: str, name: str) -> Problem:
    if raw in known.CONFIG_KEYS:
        message, reason = "is known to ingress-nginx and not honoured yet", Reason.NOT_HONOURED
    else:
        near = difflib.get_close_matches(raw, [*KEYS, *known.CONFIG_KEYS], n=1)
        message, reason = "is not a known key" + (f"; did you mean {near[0]}?" if near else ""), Reason.INVALID_CONFIG_KEY
    return Problem(reason=reason, field=f"data[{printable(raw)}]", message=message, object=name, severity="warning")
