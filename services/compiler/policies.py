"""Policies: from typed values to nginx text, named by the hash of the text. What is equal is one policy."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, LiteralString

from msgspec import Struct

from services.compiler.ir import LocationPolicy, Stream
from services.compiler.render import render
from services.compiler.settings import GlobalSettings
from services.compiler.streampolicy import stream_text
from services.shared.contracts.version import Policy, PolicyBundle, policy_hash
from services.shared.nginxtext import arguments as arg
from services.shared.nginxtext.arguments import Argument, Constant, size_bytes


class _Header(Struct, frozen=True):
    name: Argument
    value: Argument


def _h(name: LiteralString, value: LiteralString) -> _Header:
    return _Header(Constant(name), Constant(value))


_HEADERS: Final = (
    _h("Host", "$sluice_host"),
    _h("X-Request-ID", "$req_id"),
    _h("X-Real-IP", "$remote_addr"),
    _h("X-Original-Forwarded-Host", "$http_x_forwarded_host"),
    _h("Proxy", '""'),
)
_UNTRUSTED: Final = (  # the same as the maps would give, without evaluating them for each request
    _h("X-Forwarded-For", "$remote_addr"),
    _h("X-Forwarded-Host", "$http_host"),
    _h("X-Forwarded-Port", "$sluice_listener_port"),
    _h("X-Forwarded-Proto", "$scheme"),
    _h("X-Forwarded-Scheme", "$scheme"),
    _h("X-Scheme", "$scheme"),
)
_TRUSTED: Final = (
    _h("X-Forwarded-For", "$sluice_forwarded_for"),
    _h("X-Forwarded-Host", "$best_http_host"),
    _h("X-Forwarded-Port", "$pass_port"),
    _h("X-Forwarded-Proto", "$pass_access_scheme"),
    _h("X-Forwarded-Scheme", "$pass_access_scheme"),
    _h("X-Scheme", "$pass_access_scheme"),
)
_UPGRADE: Final = (_h("Upgrade", "$http_upgrade"), _h("Connection", "$connection_upgrade"))
_NO_AUTHORIZATION: Final = _h("Authorization", '""')
_PREFIX: Final = _h("X-Forwarded-Prefix", "$sluice_prefix")
_ORIGINAL_URI: Final = _h("X-Original-URI", "$request_uri")


class _Limit(Struct, frozen=True):
    zone: Argument
    burst: Argument


class _Code(Struct, frozen=True):
    number: Argument
    location: Argument


def _codes(codes: Iterable[int]) -> list[_Code]:
    return [_Code(arg.Number(c, low=300, high=599), arg.Name(f"sluice_error_{c}")) for c in codes]


def busy_buffers(policy: LocationPolicy) -> int:
    """proxy_busy_buffers_size in bytes: at least one buffer, at most all but one, else nginx refuses the whole configuration."""
    size = size_bytes(policy.buffer_size)
    wanted = size_bytes(policy.busy_buffers_size) if policy.busy_buffers_size else 2 * size
    return max(size, min(wanted, (policy.buffers_number - 1) * size))


def _temp_file(policy: LocationPolicy) -> int:
    """proxy_max_temp_file_size in bytes: 0, or at least one buffer."""
    wanted = size_bytes(policy.max_temp_file_size)
    return max(wanted, size_bytes(policy.buffer_size)) if wanted else 0


def _headers(policy: LocationPolicy, settings: GlobalSettings) -> list[_Header]:
    original = _Header(Constant("X-Original-Forwarded-For"), arg.HeaderVariable(settings.forwarded_for_header))
    out = [*_HEADERS[:3], original, *_HEADERS[3:], *(_TRUSTED if settings.use_forwarded_headers else _UNTRUSTED)]
    if not policy.protocol.startswith("GRPC"):
        out += _UPGRADE
    if policy.basic_auth:
        out.append(_NO_AUTHORIZATION)
    if policy.forwarded_prefix:
        out.append(_PREFIX)
    if settings.proxy_add_original_uri_header:
        out.append(_ORIGINAL_URI)
    return out


def _limits(policy: LocationPolicy) -> list[_Limit]:
    out = []
    for rate, unit in ((policy.limit_rps, "s"), (policy.limit_rpm, "m")):
        if rate:
            burst = min(rate * max(policy.limit_burst_multiplier, 1), 2**31 - 1)
            out.append(_Limit(arg.Name(f"rate_{rate}_{unit}"), arg.Number(burst)))
    return out


def location_text(policy: LocationPolicy, settings: GlobalSettings) -> str:
    """The inside of `location @p_<hash>`."""
    grpc = policy.protocol in ("GRPC", "GRPCS")
    view = {
        "grpc": grpc,
        "grpcs": policy.protocol == "GRPCS",
        "https": policy.protocol == "HTTPS",
        "error_codes": _codes(policy.error_codes),
        "intercept": arg.Flag(bool(policy.error_codes) and policy.intercept_upstream_errors),
        "external_auth": policy.external_auth,
        "signin": policy.signin,
        "basic_auth": policy.basic_auth,
        "filter_headers": policy.cors or policy.external_auth,
        "limit_connections": bool(policy.limit_connections),
        "connections": arg.Number(policy.limit_connections, high=65535),
        "limits": _limits(policy),
        "body_size": arg.Size(policy.body_size),
        "set_header": Constant("grpc_set_header") if grpc else Constant("proxy_set_header"),
        "hide_header": Constant("grpc_hide_header") if grpc else Constant("proxy_hide_header"),
        "headers": _headers(policy, settings),
        "hidden": [arg.HeaderName(h) for h in settings.hide_headers],
        "connect_timeout": arg.Seconds(policy.connect_timeout),
        "send_timeout": arg.Seconds(policy.send_timeout),
        "read_timeout": arg.Seconds(policy.read_timeout),
        "buffer_size": arg.Size(policy.buffer_size),
        "buffering": arg.Flag(policy.buffering),
        "buffers_number": arg.Number(policy.buffers_number, low=2, high=1024),
        "busy_buffers_size": arg.Size(str(busy_buffers(policy))),
        "max_temp_file_size": arg.Size(str(_temp_file(policy))),
        "request_buffering": arg.Flag(policy.request_buffering),
        "http_version": arg.Keyword(policy.http_version, ("1.0", "1.1")),
        "next_upstream": [
            arg.Keyword(w, _FAILURES) for w in policy.next_upstream if not (grpc and w == "off" and len(policy.next_upstream) > 1)
        ],
        "next_upstream_tries": arg.Number(policy.next_upstream_tries),
        "next_upstream_timeout": arg.Seconds(policy.next_upstream_timeout),
        "snippet": arg.Snippet(policy.snippet) if policy.snippet else None,
    }
    return render("location.conf.j2", p=view)


_FAILURES: Final = frozenset(
    "error timeout invalid_header http_500 http_502 http_503 http_504 http_403 http_404 http_429 non_idempotent off".split()
)


@lru_cache(maxsize=16384)
def policy_of(policy: LocationPolicy, settings: GlobalSettings) -> Policy:
    """The location policy's text and name. Raises TextError where a value cannot be text (validators have refused it before)."""
    text = location_text(policy, settings)
    return Policy(hash=policy_hash("location", text), scope="location", text=text, snippet=bool(policy.snippet))


class _Zone(Struct, frozen=True):
    name: Argument
    rate: Argument
    minute: bool


class _Upstream(Struct, frozen=True):
    name: Argument
    balancer: Argument


_BALANCER: Final = Constant('"lua/balancer.lua"')
_AUTH_BALANCER: Final = Constant('"lua/auth_balancer.lua"')
_UPSTREAMS: Final = (
    *(_Upstream(Constant(n), _BALANCER) for n in ("sluice_http", "sluice_https", "sluice_grpc", "sluice_grpcs")),
    *(_Upstream(Constant(n), _AUTH_BALANCER) for n in ("sluice_auth", "sluice_auths")),
)


def hsts_value(settings: GlobalSettings) -> str:
    """`max-age=N; includeSubDomains; preload`, the last two optional; empty: none."""
    if not settings.hsts:
        return ""
    parts = [f"max-age={settings.hsts_max_age}"]
    parts += ["includeSubDomains"] if settings.hsts_include_subdomains else []
    parts += ["preload"] if settings.hsts_preload else []
    return "; ".join(parts)


ALWAYS_THERE: Final = "$binary_remote_addr"
"""The default limit-conn-zone-variable: never empty, so that no map has to look whether a request counts."""


def _http_view(s: GlobalSettings) -> dict[str, object]:
    number, _, each = s.large_client_header_buffers.partition(" ")
    escape = "none" if s.log_format_escape_none else "json" if s.log_format_escape_json else "default"
    return {
        "generate_request_id": s.generate_request_id,
        "keepalive": bool(s.upstream_keepalive_connections),
        "keepalive_connections": arg.Number(max(s.upstream_keepalive_connections, 1)),
        "keepalive_requests": arg.Number(s.upstream_keepalive_requests),
        "keepalive_time": arg.Duration(s.upstream_keepalive_time),
        "keepalive_timeout": arg.Seconds(s.upstream_keepalive_timeout),
        "hsts": arg.Text(hsts_value(s)),
        "limit_variable": arg.RequestKey(s.limit_conn_zone_variable) if s.limit_conn_zone_variable != ALWAYS_THERE else None,
        "limit_value": arg.RequestKey(s.limit_conn_zone_variable, prefix="$sluice_limit_key"),
        "use_forwarded_headers": s.use_forwarded_headers,
        "full_forwarded_for": s.use_forwarded_headers and s.compute_full_forwarded_for,
        "log_escape": arg.Keyword(escape, ("none", "json", "default")),
        "log_format": arg.LogFormat(s.log_format_upstream),
        "access_log": not (s.disable_access_log or s.disable_http_access_log),
        "default_type": arg.Text(s.default_type),
        "server_tokens": arg.Flag(s.server_tokens),
        "show_server": s.server_tokens,
        "backend_server_header": s.allow_backend_server_header,
        "underscores_in_headers": arg.Flag(s.enable_underscores_in_headers),
        "ignore_invalid_headers": arg.Flag(s.ignore_invalid_headers),
        "absolute_redirect": arg.Flag(not s.relative_redirects),
        "keep_alive": arg.Seconds(s.keep_alive),
        "keep_alive_requests": arg.Number(s.keep_alive_requests, low=1),
        "client_header_timeout": arg.Seconds(s.client_header_timeout),
        "client_body_timeout": arg.Seconds(s.client_body_timeout),
        "client_header_buffer_size": arg.Size(s.client_header_buffer_size, low=256),
        "client_body_buffer_size": arg.Size(s.client_body_buffer_size, low=1024),
        "large_header_buffers_number": arg.Number(int(number)),
        "large_header_buffers_size": arg.Size(each, low=512),
        "http2_max_concurrent_streams": arg.Number(s.http2_max_concurrent_streams),
        "real_ip": s.use_forwarded_headers or s.enable_real_ip,
        "real_ip_from": [arg.Cidr(c) for c in s.proxy_real_ip_cidr],
        "real_ip_header": arg.HeaderName(s.forwarded_for_header),
        "gzip": s.use_gzip,
        "gzip_level": arg.Number(s.gzip_level),
        "gzip_min_length": arg.Number(s.gzip_min_length),
        "gzip_types": [arg.Text(t) for t in s.gzip_types],
        "limit_req_status": arg.Number(s.limit_req_status_code),
        "limit_conn_status": arg.Number(s.limit_conn_status_code),
    }


def _server_view(s: GlobalSettings) -> dict[str, object]:
    return {
        "ssl_protocols": [arg.Keyword(p, ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")) for p in s.ssl_protocols],
        "ssl_ciphers": arg.Ciphers(s.ssl_ciphers),
        "ssl_ecdh_curve": arg.Ciphers(s.ssl_ecdh_curve),
        "ssl_buffer_size": arg.Size(s.ssl_buffer_size),
        "ssl_session_cache": s.ssl_session_cache,
        "ssl_session_cache_size": arg.Size(s.ssl_session_cache_size, low=65536),
        "ssl_session_timeout": arg.Duration(s.ssl_session_timeout),
        "ssl_session_tickets": arg.Flag(s.ssl_session_tickets),
        "ssl_early_data": arg.Flag(s.ssl_early_data),
        "send_hsts": s.hsts,
    }


def _main_view(s: GlobalSettings) -> dict[str, object]:
    return {
        "worker_processes": arg.Text(s.worker_processes),
        "worker_shutdown_timeout": arg.Duration(s.worker_shutdown_timeout),
        "error_log_level": arg.Text(s.error_log_level),
        "worker_connections": arg.Number(s.max_worker_connections),
        "multi_accept": arg.Flag(s.enable_multi_accept),
    }


def _zones(policies: Iterable[LocationPolicy]) -> list[_Zone]:
    rates = {(p.limit_rps, False) for p in policies if p.limit_rps} | {(p.limit_rpm, True) for p in policies if p.limit_rpm}
    return [_Zone(arg.Name(f"rate_{r}_{'m' if minute else 's'}"), arg.Number(r), minute) for r, minute in sorted(rates)]


def _policy(scope: str, text: str) -> Policy:
    return Policy(hash=policy_hash(scope, text), scope=scope, text=text)  # type: ignore[arg-type]  # one of its scopes


def render_bundle(settings: GlobalSettings, policies: Iterable[LocationPolicy], streams: Collection[Stream] = ()) -> PolicyBundle:
    """All policies of a version: the global ones, and the location policies in use. A new location policy changes a global one only where
    it needs a new zone or a new error location. `stream` is there only with TCP or UDP services."""
    used = sorted(set(policies), key=lambda p: policy_of(p, settings).hash)
    main = _main_view(settings)
    codes = sorted({c for p in used for c in p.error_codes} | set(settings.custom_http_errors))
    rendered = {policy_of(p, settings).hash: policy_of(p, settings) for p in used}
    out = [
        _policy("main", render("main.conf.j2", s=main)),
        _policy("events", render("events.conf.j2", s=main)),
        _policy(
            "http",
            render(
                "http.conf.j2",
                s=_http_view(settings),
                zones=_zones(used),
                limit_connections=any(p.limit_connections for p in used),
                upstreams=_UPSTREAMS,
            ),
        ),
        _policy(
            "server",
            render("server.conf.j2", s=_server_view(settings), errors=[{"code": c.number, "location": c.location} for c in _codes(codes)]),
        ),
        *([_policy("stream", stream_text(streams, settings))] if streams else []),
        *rendered.values(),
    ]
    return PolicyBundle(policies=tuple(sorted(out, key=lambda p: (p.scope, p.hash))))
