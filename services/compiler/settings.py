"""The global settings: typed, with ingress-nginx's defaults. `configmap` reads them."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

LOG_FORMAT: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent" '
    "$request_length $request_time [$proxy_upstream_name] [$proxy_alternative_upstream_name] $upstream_addr "
    "$upstream_response_length $upstream_response_time $upstream_status $req_id"
)
LOG_FORMAT_STREAM: Final = "[$remote_addr] [$time_local] $protocol $status $bytes_sent $bytes_received $session_time"
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
    global_auth_url: str = ""
    global_auth_method: str = ""
    global_auth_signin: str = ""
    global_auth_signin_redirect_param: str = "rd"
    global_auth_response_headers: tuple[str, ...] = ()
    global_auth_request_redirect: str = ""
    global_auth_always_set_cookie: bool = False
    closed: bool = False
    """No key: one that guards all routes has no usable value, and had none before. All answer 503."""
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
    # stream
    log_format_stream: str = LOG_FORMAT_STREAM
    disable_stream_access_log: bool = False
    proxy_stream_timeout: str = "600s"
    proxy_stream_responses: int = 1
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
