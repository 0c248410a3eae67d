"""The policy of an Ingress's locations: its own settings, and what it inherits of the global ones."""

from __future__ import annotations

from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from services.compiler.annotations.settings import IngressSettings
from services.compiler.ir import LocationPolicy
from services.compiler.settings import GlobalSettings

T = TypeVar("T")


class AuthService(Struct, frozen=True, kw_only=True):
    """Who is asked about every request (behaviours §8)."""

    url: str
    method: str
    signin: str
    signin_redirect_param: str
    response_headers: tuple[str, ...]
    request_redirect: str
    always_set_cookie: bool


def auth_service(s: IngressSettings, g: GlobalSettings) -> AuthService | None:
    """The Ingress's own, or the global one unless it opts out."""
    if s.auth_url:
        return _service(s, "auth")
    return _service(g, "global_auth") if g.global_auth_url and s.enable_global_auth else None


def _service(settings: IngressSettings | GlobalSettings, prefix: str) -> AuthService:
    """Both have the same settings, under other names."""
    return AuthService(**{field: getattr(settings, f"{prefix}_{field}") for field in AuthService.__struct_fields__})


def pick(own: T | None, inherited: T) -> T:
    return inherited if own is None else own


def location_policy(s: IngressSettings, g: GlobalSettings) -> LocationPolicy:
    """The policy of an Ingress's locations, before what depends on the single path."""
    next_upstream = pick(s.proxy_next_upstream, g.proxy_next_upstream)
    if g.retry_non_idempotent and "non_idempotent" not in next_upstream:
        next_upstream = (*next_upstream, "non_idempotent")
    service = auth_service(s, g)
    signin = service is not None and bool(service.signin)
    own_errors = s.custom_http_errors
    inherited_errors = () if signin else g.custom_http_errors
    return LocationPolicy(
        protocol=s.backend_protocol,  # type: ignore[arg-type]  # one of the four: values.protocol
        connect_timeout=pick(s.proxy_connect_timeout, g.proxy_connect_timeout),
        send_timeout=pick(s.proxy_send_timeout, g.proxy_send_timeout),
        read_timeout=pick(s.proxy_read_timeout, g.proxy_read_timeout),
        body_size=pick(s.proxy_body_size, g.proxy_body_size),
        buffering=pick(s.proxy_buffering, g.proxy_buffering),
        buffer_size=pick(s.proxy_buffer_size, g.proxy_buffer_size),
        buffers_number=pick(s.proxy_buffers_number, g.proxy_buffers_number),
        busy_buffers_size=pick(s.proxy_busy_buffers_size, g.proxy_busy_buffers_size),
        request_buffering=pick(s.proxy_request_buffering, g.proxy_request_buffering),
        http_version=pick(s.proxy_http_version, g.proxy_http_version),  # type: ignore[arg-type]  # 1.0 or 1.1
        max_temp_file_size=pick(s.proxy_max_temp_file_size, g.proxy_max_temp_file_size),
        next_upstream=next_upstream,
        next_upstream_tries=pick(s.proxy_next_upstream_tries, g.proxy_next_upstream_tries),
        next_upstream_timeout=pick(s.proxy_next_upstream_timeout, g.proxy_next_upstream_timeout),
        basic_auth=bool(s.auth_type),
        external_auth=service is not None,
        signin=signin,
        cors=s.enable_cors,
        limit_rps=s.limit_rps,
        limit_rpm=s.limit_rpm,
        limit_burst_multiplier=s.limit_burst_multiplier if s.limit_rps or s.limit_rpm else 5,
        limit_connections=s.limit_connections,
        error_codes=pick(own_errors, inherited_errors),
        intercept_upstream_errors=not (s.disable_proxy_intercept_errors or (own_errors is None and g.disable_proxy_intercept_errors)),
        snippet=s.configuration_snippet,
    )


_POLICY_FIELDS: Final = (
    *(f for f in IngressSettings.__struct_fields__ if f.startswith(("proxy_", "limit_"))),
    *("auth_type", "auth_url", "auth_signin", "enable_cors", "custom_http_errors", "disable_proxy_intercept_errors"),
    "configuration_snippet",
)


def without_policy(s: IngressSettings) -> IngressSettings:
    """The same Ingress with the policy of one that says nothing: nginx refuses its own, and it is closed until it changes."""
    bare = IngressSettings()
    return replace(s, **{field: getattr(bare, field) for field in _POLICY_FIELDS})
