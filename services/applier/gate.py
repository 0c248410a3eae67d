"""The applier's own look at a version's policies before nginx sees them: directives from a closed list, each in its context.

nginx -t executes what it is given (it loads modules and creates files), so what must never be there is refused first.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from services.applier.streams import check_text
from services.shared.contracts.version import Policy, PolicyBundle, policy_hash
from services.shared.nginxtext.arguments import TextError
from services.shared.nginxtext.strict import Directive, parse

ALLOWED: Final[dict[str, frozenset[str]]] = {
    "main": frozenset("worker_processes worker_shutdown_timeout error_log pcre_jit worker_cpu_affinity".split()),
    "events": frozenset("worker_connections multi_accept".split()),
    "http": frozenset(
        """geo map log_format access_log default_type server_tokens more_clear_headers more_set_headers underscores_in_headers
        ignore_invalid_headers absolute_redirect keepalive_timeout keepalive_requests client_header_timeout client_body_timeout
        client_header_buffer_size client_body_buffer_size large_client_header_buffers http2_max_concurrent_streams set_real_ip_from
        real_ip_header real_ip_recursive gzip gzip_comp_level gzip_http_version gzip_min_length gzip_types gzip_proxied gzip_vary
        limit_req_status limit_conn_status limit_req_zone limit_conn_zone upstream server balancer_by_lua_file keepalive
        keepalive_time proxy_pass_header grpc_pass_header""".split()
    ),
    "server": frozenset(
        """ssl_protocols ssl_ciphers ssl_prefer_server_ciphers ssl_ecdh_curve ssl_buffer_size ssl_session_cache ssl_session_timeout
        ssl_session_tickets ssl_early_data more_set_headers location rewrite_by_lua_file proxy_http_version proxy_set_header
        proxy_pass_request_body proxy_pass""".split()
    ),
    "stream": frozenset(
        "log_format access_log proxy_timeout server listen set proxy_responses set_real_ip_from proxy_protocol proxy_pass".split()
    ),
    "location": frozenset(
        """error_page auth_request access_by_lua_file auth_basic auth_basic_user_file header_filter_by_lua_file add_header limit_conn
        limit_req client_max_body_size proxy_set_header grpc_set_header proxy_hide_header grpc_hide_header proxy_http_version
        proxy_connect_timeout proxy_send_timeout proxy_read_timeout proxy_buffering proxy_buffer_size proxy_buffers
        proxy_busy_buffers_size proxy_max_temp_file_size proxy_request_buffering proxy_intercept_errors proxy_next_upstream
        proxy_next_upstream_tries proxy_next_upstream_timeout proxy_redirect grpc_connect_timeout grpc_send_timeout grpc_read_timeout
        grpc_buffer_size grpc_intercept_errors grpc_next_upstream grpc_next_upstream_tries grpc_next_upstream_timeout
        grpc_ssl_server_name grpc_ssl_name grpc_pass proxy_pass""".split()
    ),
}

NEVER: Final = frozenset(
    """load_module include user env working_directory daemon master_process pid lock_file worker_rlimit_core ssl_engine perl perl_set
    perl_modules alias root dav_methods mp4 flv ssi slice autoindex js_import js_include js_content js_set js_path upload_pass
    proxy_cache_background_update proxy_store proxy_ssl_certificate proxy_ssl_certificate_key ssl_certificate ssl_certificate_key
    client_body_temp_path proxy_temp_path access_log error_log listen server upstream geoip_country secure_link""".split()
)
"""Not even in a snippet that the administrator allows."""

_KEYED: Final = frozenset(("map", "geo"))


class GateError(Struct, frozen=True, kw_only=True):
    """Why a policy is refused."""

    policy: str
    scope: str
    words: str


def check_bundle(bundle: PolicyBundle) -> list[GateError]:
    """Every policy that must not reach nginx."""
    return [GateError(policy=p.hash, scope=p.scope, words=words) for p in bundle.policies if (words := _check(p))]


def _check(policy: Policy) -> str:
    if policy_hash(policy.scope, policy.text) != policy.hash:
        return "its hash is not that of its text"
    try:
        directives = parse(policy.text)
    except TextError as error:
        return f"not of the language that policies are written in: {error}"
    for directive in _outside_keyed(directives):
        words = _check_directive(policy, directive)
        if words:
            return words
    return check_text(policy.text, directives) if policy.scope == "stream" else ""


def _outside_keyed(directives: tuple[Directive, ...]) -> list[Directive]:
    out = []
    for d in directives:
        out.append(d)
        if d.block and d.name not in _KEYED:
            out.extend(_outside_keyed(d.block))
    return out


def _check_directive(policy: Policy, directive: Directive) -> str:
    name = directive.name
    if policy.snippet:
        if name in NEVER or name.endswith("_by_lua") or name.endswith("_by_lua_block"):
            return f"{name} is never possible"
    elif name not in ALLOWED[policy.scope]:
        return f"{name} is not possible in a {policy.scope} policy"
    file = directive.args[0] if directive.args else ""
    if name.endswith("_by_lua_file") and (not file.startswith("lua/") or ".." in file):
        return f"{name} names a file that is not shipped"
    if name in ("proxy_pass", "grpc_pass") and any("unix:" in a for a in directive.args):
        return f"{name} to a socket"
    if name in ("error_log", "access_log") and directive.args[:1] not in (("off",), ("logs/error.log",), ("logs/access.log",)):
        return f"{name} outside the node's directory"
    return ""
