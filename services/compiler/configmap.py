"""The controller ConfigMap: one small entry a key, typed values out, problems as values.

Lenient as ingress-nginx is: one bad value is reported and its last good value (or the default) stays; the others apply. Unknown keys
are named with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from services.compiler import known
from services.compiler.annotations import values as v
from services.compiler.annotations.settings import IngressSettings
from services.compiler.configvalues import (
    PartlyUsable,
    boolean,
    buffer_size,
    buffers,
    cidrs,
    ciphers,
    curves,
    duration,
    error_codes,
    failures,
    header,
    headers,
    integer,
    log_format,
    media_type,
    mime_types,
    one_of,
    optional_buffer_size,
    patterns,
    processes,
    protocols,
    redirect_code,
    request_key,
    risk,
    size,
    size_between,
    stream_log_format,
    switch,
    trusted,
    words,
)
from services.compiler.locationpolicy import location_policy
from services.compiler.policies import render_bundle
from services.compiler.settings import GlobalSettings
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.nginxtext.arguments import TextError


class Context(StrEnum):
    """Where a key acts, and so what a change of it costs."""

    MAIN = "main"
    HTTP = "http"
    STREAM = "stream"
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

    @property
    def example(self) -> str:
        """A good value: the default, as the ConfigMap would have it."""
        default = getattr(_DEFAULTS, self.field)
        if not default and not isinstance(default, bool | int):
            return EXAMPLES[self.name]
        return next(text for text in _texts(default) if self._means(text, default))

    def _means(self, text: str, value: object) -> bool:
        try:
            return bool(self.parse(text) == value)
        except TextError:
            return False


EXAMPLES: Final = {
    "annotation-value-word-blocklist": "load_module,lua_package",
    "block-cidrs": "192.0.2.0/24",
    "block-referers": "spam.example,~*bad",
    "block-user-agents": "~*curl",
    "custom-http-errors": "404,503",
    "denylist-source-range": "192.0.2.0/24",
    "global-auth-method": "POST",
    "global-auth-request-redirect": "/original",
    "global-auth-response-headers": "X-User,X-Groups",
    "global-auth-signin": "https://login.example.com/start",
    "global-auth-url": "http://auth.default.svc/check",
    "hide-headers": "X-Powered-By",
    "no-auth-locations": "/.well-known/acme-challenge",
    "proxy-busy-buffers-size": "8k",
    "skip-access-log-urls": "/healthz",
    "whitelist-source-range": "10.0.0.0/8",
}
"""Where the default is empty."""
GUARDS: Final = frozenset({"global-auth-url", "whitelist-source-range", "denylist-source-range", "block-cidrs"})
"""Without a usable value of these routes would be open that the administrator wants guarded."""
_DEFAULTS: Final = GlobalSettings()


def _texts(value: object) -> tuple[str, ...]:
    """How a typed value may stand in the ConfigMap."""
    if isinstance(value, bool):
        return (str(value).lower(), "on" if value else "off")
    if isinstance(value, tuple):
        return (",".join(map(str, value)), " ".join(map(str, value)))
    return (str(value),)


_seconds = integer(0, 10**7)
_timeout = integer(1, 10**8)


def _optional(parse: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: parse(text) if text else ""


def _keys(context: Context, **parsers: Callable[[str], Any]) -> list[Key]:
    return [Key(name=name.replace("_", "-"), parse=parse, context=context) for name, parse in parsers.items()]


KEYS: Final[dict[str, Key]] = {
    key.name: key
    for key in [
        *_keys(
            Context.LOCATION,
            proxy_body_size=size,
            proxy_buffer_size=buffer_size,
            proxy_buffering=switch,
            proxy_buffers_number=integer(2, 1024),
            proxy_busy_buffers_size=optional_buffer_size,
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
            custom_http_errors=error_codes,
            disable_proxy_intercept_errors=boolean,
            proxy_add_original_uri_header=boolean,
            hide_headers=headers,
            allow_backend_server_header=boolean,
            global_auth_url=_optional(v.auth_url),
            global_auth_method=_optional(v.http_method),
            global_auth_signin=_optional(v.auth_url),
            global_auth_signin_redirect_param=v.parameter_name,
            global_auth_response_headers=headers,
            global_auth_request_redirect=_optional(v.dns_or_path),
            global_auth_always_set_cookie=boolean,
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
            proxy_real_ip_cidr=trusted,
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
            client_header_buffer_size=size_between("256", "1m"),
            client_body_buffer_size=size_between("1k", "1g"),
            large_client_header_buffers=buffers,
            http2_max_concurrent_streams=integer(1, 100000),
            upstream_keepalive_connections=integer(0, 100000),
            upstream_keepalive_requests=integer(1),
            upstream_keepalive_time=duration("ms|s|m|h|d"),
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
            ssl_buffer_size=size_between("512", "1m"),
            ssl_session_cache=boolean,
            ssl_session_cache_size=size_between("64k", "1g"),
            ssl_session_timeout=duration("s|m|h|d|w|M|y"),
            ssl_session_tickets=boolean,
            ssl_early_data=boolean,
        ),
        *_keys(
            Context.STREAM,
            log_format_stream=stream_log_format,
            disable_stream_access_log=boolean,
            proxy_stream_timeout=duration("ms|s|m|h|d"),
            proxy_stream_responses=integer(0, 1000000),
        ),
        *_keys(
            Context.MAIN,
            worker_processes=processes,
            worker_shutdown_timeout=duration("ms|s|m|h|d"),
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
        except PartlyUsable as error:
            values[key.field] = error.value
            problems.append(_bad(key, f'"{printable(data[raw])}" is not all {error}; the others count', name, "warning"))
        except TextError as error:
            stays = getattr(previous or _DEFAULTS, key.field)
            closed = key.name in GUARDS and not stays
            instead = "all routes answer 503, as it should guard them" if closed else "the last good value stays"
            problems.append(_bad(key, f'"{printable(data[raw])}" is not {error}; {instead}', name))
            values[key.field] = stays
            if closed:
                values["closed"] = True
    problems += _unrenderable(values, previous, name)
    return msgspec.structs.replace(_DEFAULTS, **values), problems


def _unrenderable(values: dict[str, Any], previous: GlobalSettings | None, name: str) -> Iterator[Problem]:
    """What the parsers let through and no policy can be made of is taken out of `values`: a mistake here, and none to die of."""
    if not _refused(values):
        return
    for field in sorted(values.keys() - {"closed"}):
        words = _refused({field: values[field]})
        if words:
            key = KEYS[field.replace("_", "-")]
            yield _bad(key, f"is not {words}; the last good value stays", name)
            del values[field]
            if previous is not None:
                values[field] = getattr(previous, field)


def _refused(values: dict[str, Any]) -> str:
    settings = msgspec.structs.replace(_DEFAULTS, **values)
    try:
        render_bundle(settings, [location_policy(IngressSettings(), settings)])
    except TextError as error:
        return str(error)
    return ""


def _bad(key: Key, message: str, name: str, severity: Literal["error", "warning"] = "error") -> Problem:
    return Problem(
        reason=Reason.INVALID_CONFIG_KEY, field=f"data[{key.name}]", message=message, example=key.example, object=name, severity=severity
    )


def _unknown(raw: str, name: str) -> Problem:
    if raw in known.CONFIG_KEYS:
        message, reason = "is known to ingress-nginx and not honoured yet", Reason.NOT_HONOURED
    else:
        near = difflib.get_close_matches(raw, [*KEYS, *known.CONFIG_KEYS], n=1)
        message, reason = "is not a known key" + (f"; did you mean {near[0]}?" if near else ""), Reason.INVALID_CONFIG_KEY
    return Problem(reason=reason, field=f"data[{printable(raw)}]", message=message, object=name, severity="warning")
