"""What an Ingress's annotations say, typed. None: not said, and the ConfigMap's (or nginx's) default holds."""

from __future__ import annotations

from msgspec import Struct


class IngressSettings(Struct, frozen=True, kw_only=True):
    """One field an annotation, in the families' order. Units as in the ConfigMap's settings."""

    # rewrite
    ssl_redirect: bool | None = None
    force_ssl_redirect: bool | None = None
    preserve_trailing_slash: bool | None = None
    use_port_in_redirects: bool | None = None
    rewrite_target: str = ""
    use_regex: bool = False
    app_root: str = ""
    x_forwarded_prefix: str = ""
    # redirect
    permanent_redirect: str = ""
    permanent_redirect_code: int = 301
    temporal_redirect: str = ""
    temporal_redirect_code: int = 302
    # proxy
    proxy_body_size: str | None = None
    proxy_connect_timeout: int | None = None
    proxy_send_timeout: int | None = None
    proxy_read_timeout: int | None = None
    proxy_buffering: bool | None = None
    proxy_buffer_size: str | None = None
    proxy_buffers_number: int | None = None
    proxy_busy_buffers_size: str | None = None
    proxy_request_buffering: bool | None = None
    proxy_http_version: str | None = None
    proxy_max_temp_file_size: str | None = None
    proxy_next_upstream: tuple[str, ...] | None = None
    proxy_next_upstream_tries: int | None = None
    proxy_next_upstream_timeout: int | None = None
    # backend
    backend_protocol: str = "HTTP"
    upstream_vhost: str = ""
    load_balance: str = ""
    upstream_hash_by: str = ""
    upstream_hash_by_subset: bool = False
    upstream_hash_by_subset_size: int = 3
    service_upstream: bool | None = None
    # session affinity
    affinity: str = ""
    affinity_mode: str = "balanced"
    affinity_canary_behavior: str = "sticky"
    session_cookie_name: str = "INGRESSCOOKIE"
    session_cookie_expires: int | None = None
    session_cookie_max_age: int | None = None
    session_cookie_path: str = ""
    session_cookie_domain: str = ""
    session_cookie_samesite: str = ""
    session_cookie_conditional_samesite_none: bool = False
    session_cookie_secure: bool = False
    session_cookie_change_on_failure: bool = False
    # canary
    canary: bool = False
    canary_by_header: str = ""
    canary_by_header_value: str = ""
    canary_by_header_pattern: str = ""
    canary_by_cookie: str = ""
    canary_weight: int = 0
    canary_weight_total: int = 100
    # authentication
    auth_type: str = ""
    auth_secret: str = ""
    auth_secret_type: str = "auth-file"
    auth_realm: str = ""
    auth_url: str = ""
    auth_method: str = ""
    auth_signin: str = ""
    auth_signin_redirect_param: str = "rd"
    auth_response_headers: tuple[str, ...] = ()
    auth_request_redirect: str = ""
    auth_always_set_cookie: bool = False
    enable_global_auth: bool = True
    # cors
    enable_cors: bool = False
    cors_allow_origin: tuple[str, ...] = ("*",)
    cors_allow_methods: str = "GET, PUT, POST, DELETE, PATCH, OPTIONS"
    cors_allow_headers: str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,Authorization"
    cors_expose_headers: str = ""
    cors_allow_credentials: bool = True
    cors_max_age: int = 1728000
    # limits and access
    limit_rps: int = 0
    limit_rpm: int = 0
    limit_burst_multiplier: int = 5
    limit_connections: int = 0
    allowlist_source_range: tuple[str, ...] = ()
    whitelist_source_range: tuple[str, ...] = ()
    denylist_source_range: tuple[str, ...] | None = None
    # errors, server, logs, snippets
    default_backend: str = ""
    custom_http_errors: tuple[int, ...] | None = None
    disable_proxy_intercept_errors: bool = False
    server_alias: tuple[str, ...] = ()
    enable_access_log: bool = True
    configuration_snippet: str = ""
