"""What the applier writes around the policies: node settings and the constant locations (docs/dataplane.md). One directory a generation.

Node settings are local: ports, paths, dictionary sizes. They are never part of a version or its digest.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import resource
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Struct

from services.applier.streams import NJS, Listener, node_text
from services.shared.contracts.version import PolicyBundle
from services.shared.nginxtext import arguments as arg

LUA: Final = Path(__file__).with_name("lua")
MODULES: Final = Path("/usr/lib/nginx/modules")
MODULE_FILES: Final = ("ndk_http_module.so", "ngx_http_lua_module.so", "ngx_http_headers_more_filter_module.so")
STREAM_MODULE_FILES: Final = ("ngx_stream_module.so", "ngx_stream_js_module.so")
"""Loaded only where the version has TCP or UDP services."""
MEGABYTE: Final = 1024 * 1024
SMALLEST_TABLES: Final = 64 * MEGABYTE

VARIABLES: Final = (
    "sluice_backend sluice_host sluice_prefix sluice_limit_key sluice_basic_realm sluice_basic_file sluice_auth sluice_auth_result "
    "sluice_cors sluice_cookie sluice_endpoint sluice_row sluice_quiet sluice_forwarded_host sluice_error_backend "
    "sluice_auth_host sluice_auth_port sluice_auth_target sluice_auth_backend sluice_auth_redirect sluice_auth_uri sluice_auth_scheme "
    "proxy_upstream_name proxy_alternative_upstream_name namespace ingress_name service_name service_port location_path"
).split()
"""What Lua writes; `sluice_auth_method` is registered with its default."""

META_VARIABLES: Final = ("$namespace", "$ingress_name", "$service_name", "$service_port", "$location_path")


class NodeSettings(Struct, frozen=True, kw_only=True):
    """One node's own settings."""

    directory: Path
    """The node's directory; nginx's prefix."""
    http_port: int
    https_port: int
    address: str = ""
    """Listen on this address only; empty: all, IPv4 and IPv6."""
    user: str = ""
    """Worker user; empty: nginx is not started as root, or its workers stay root."""
    worker_processes: int = 0
    """0: what the version's `main` policy says."""
    tables_bytes: int = SMALLEST_TABLES
    """Size of `sluice_tables`. A change empties the dictionary at the next reload, and `init_by_lua` fills it from disk."""
    metrics: bool = False
    metrics_per_host: bool = True
    stream_port_offset: int = 0
    """Added to the ports of TCP and UDP services: several nodes share a machine."""
    status_allow: tuple[str, ...] = ("127.0.0.1", "::1")
    """Who may read /nginx_status on the catch-all server."""

    @property
    def control_socket(self) -> Path:
        """In a folder that only its owner can enter: nginx makes its sockets writable for everybody."""
        return self._socket_folder("control") / "control.sock"

    @property
    def builtin_socket(self) -> Path:
        """The built-in default backend's, which workers connect to as the user that they run as."""
        return self._socket_folder("builtin") / "builtin.sock"

    @property
    def sockets(self) -> tuple[Path, ...]:
        """What nginx leaves behind when it is killed, and does not start over."""
        return self.control_socket, self.builtin_socket

    def _socket_folder(self, name: str) -> Path:
        """In the node's directory, or, where that path is too long for a socket (108 bytes), under the system's temporary directory."""
        folder = self.directory / name
        if len(str(folder)) <= 86:
            return folder
        return Path(tempfile.gettempdir()) / f"sluice-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"


def _plain(path: str) -> str:
    """A path of this node inside a longer argument: of characters that need no quotes."""
    if not arg.fullmatch(r"[A-Za-z0-9_./:+@%=-]+", path):
        raise arg.TextError(f"a state directory without spaces and special characters; {path!r} has some")
    return path


def required_tables_bytes(rows: int, row_bytes: int) -> int:
    """How large `sluice_tables` should be for so many rows: slab rounding, a pushed copy of what changes, and room to grow."""
    wanted = 3 * row_bytes + 512 * rows
    size = SMALLEST_TABLES
    while size < wanted:
        size *= 2
    return size


def _listen(settings: NodeSettings) -> list[str]:
    hosts = [settings.address] if settings.address else ["", "[::]"]
    out = []
    for host in hosts:
        where = f"{host}:" if host else ""
        only = " ipv6only=on" if host == "[::]" else ""
        out.append(f"listen {where}{settings.http_port} default_server reuseport backlog=4096{only};")
        out.append(f"listen {where}{settings.https_port} default_server ssl http2 reuseport backlog=4096{only};")
    return out


def nginx_conf(settings: NodeSettings, bundle: PolicyBundle) -> str:
    """The whole nginx.conf. Nothing in it comes from an object: paths and ports of this node, hashes, constants."""
    streams = any(p.scope == "stream" for p in bundle.policies)
    files = (*MODULE_FILES, *(STREAM_MODULE_FILES if streams else ()))
    modules = "".join(f"load_module {arg.Path(str(MODULES / m)).text};\n" for m in files)
    user = f"user {arg.Keyword(settings.user, (settings.user,)).text};\n" if settings.user else ""
    locations = "".join(
        f"    location @p_{p.hash} {{ include policies/{p.hash}.conf; }}\n" for p in bundle.policies if p.scope == "location"
    )
    return _CONF.format(
        modules=modules,
        user=user,
        tables=settings.tables_bytes // MEGABYTE,
        https_port=settings.https_port,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        directory=_plain(str(settings.directory)),
        control=_plain(f"unix:{settings.control_socket}"),
        builtin=_plain(f"unix:{settings.builtin_socket}"),
        listen="\n    ".join(_listen(settings)),
        variables="\n      ".join(f'set ${v} "";' for v in VARIABLES),
        allow=" ".join(f"allow {arg.Cidr(c).text};" for c in settings.status_allow),
        locations=locations,
        stream=stream_conf(settings) if streams else "",
    )


def stream_conf(settings: NodeSettings) -> str:
    """What nginx.conf has where there are TCP or UDP services."""
    return _STREAM.format(directory=_plain(str(settings.directory)))


_STREAM: Final = """stream {{
  js_import stream from {directory}/njs/stream.js;
  js_var $sluice_streams {directory}/streams;
  js_set $sluice_endpoint stream.endpoint;
  js_set $proxy_upstream_name stream.name;
  include stream.conf;
}}
"""


_CONF: Final = """# Written by the applier; a new generation replaces it.
{modules}{user}pid run/nginx.pid;
include main.conf;
worker_rlimit_nofile {files};
events {{ include events.conf; }}
http {{
  lua_package_path "$prefix/lua/?.lua;;";
  lua_shared_dict sluice_tables {tables}m;
  lua_shared_dict sluice_state 16m;
  lua_shared_dict sluice_metrics 32m;
  lua_regex_cache_max_entries 32768;
  lua_regex_match_limit 500000;
  lua_max_running_timers 64;
  init_by_lua_file lua/init.lua;
  init_worker_by_lua_file lua/init_worker.lua;
  log_by_lua_file lua/log.lua;
  uninitialized_variable_warn off;
  variables_hash_max_size 4096;
  variables_hash_bucket_size 256;
  proxy_headers_hash_max_size 1024;
  proxy_headers_hash_bucket_size 128;
  map_hash_bucket_size 256;
  client_body_temp_path run/body;
  proxy_temp_path run/proxy;
  fastcgi_temp_path run/fastcgi;
  uwsgi_temp_path run/uwsgi;
  scgi_temp_path run/scgi;
  sendfile on;
  tcp_nopush on;
  reset_timedout_connection on;
  map $server_port $sluice_listener_port {{ default $server_port; {https_port} 443; }}
  include http.conf;

  server {{
    {listen}
    server_name _;
    ssl_certificate {directory}/node.crt;
    ssl_certificate_key {directory}/node.key;
    ssl_certificate_by_lua_file lua/certificate.lua;
    port_in_redirect off;
    include server.conf;

    location / {{
      client_max_body_size 0;
      rewrite_by_lua_file lua/router.lua;
      content_by_lua_file lua/unrouted.lua;
    }}
    location = /.sluice/vars {{
      internal;
      set $sluice_auth_method GET;
      {variables}
    }}
    location = /.sluice/auth {{
      internal;
      access_log off;
      set $sluice_auth_method GET;
      rewrite_by_lua_file lua/auth_prepare.lua;
      header_filter_by_lua_file lua/auth_keep.lua;
      client_max_body_size 0;
      proxy_pass_request_body off;
      proxy_http_version 1.1;
      proxy_method $sluice_auth_method;
      proxy_set_header Connection "";
      proxy_set_header Content-Length "";
      proxy_set_header X-Forwarded-Proto "";
      proxy_set_header Host $sluice_auth_host;
      proxy_set_header X-Original-URL $pass_access_scheme://$best_http_host$request_uri;
      proxy_set_header X-Original-Method $request_method;
      proxy_set_header X-Original-URI $sluice_auth_uri;
      proxy_set_header X-Scheme $sluice_auth_scheme;
      proxy_set_header X-Sent-From nginx-ingress-controller;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $sluice_forwarded_for;
      proxy_set_header X-Auth-Request-Redirect $sluice_auth_redirect;
      proxy_set_header X-Request-ID $req_id;
      proxy_ssl_server_name on;
      proxy_ssl_name $sluice_auth_host;
      proxy_buffering off;
      proxy_buffer_size 32k;
      proxy_buffers 4 32k;
      proxy_busy_buffers_size 32k;
      proxy_redirect off;
      proxy_pass $sluice_auth_target;
    }}
    location @sluice_404 {{ return 404; }}
    location @sluice_health {{ return 200; }}
    location @sluice_status {{ {allow} deny all; stub_status; }}
    location @sluice_signin {{ content_by_lua_file lua/signin.lua; header_filter_by_lua_file lua/headers.lua; }}
{locations}  }}

  server {{
    listen {control};
    access_log off;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    location / {{ content_by_lua_file lua/control.lua; }}
  }}

  server {{
    listen {builtin};
    access_log off;
    client_max_body_size 0;
    location / {{ return 404; }}
  }}
}}
{stream}"""


def write_generation(
    directory: Path,
    settings: NodeSettings,
    bundle: PolicyBundle,
    *,
    generation: int,
    version: str,
    without: frozenset[Listener] = frozenset(),
) -> None:
    """A version directory's text files: nginx.conf, node.json, the policies. `version`: `epoch.number`; `without`: ports it cannot have."""
    policies = directory / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    for policy in bundle.policies:
        target = policies / f"{policy.hash}.conf" if policy.scope == "location" else directory / f"{policy.scope}.conf"
        text = policy.text
        if policy.scope == "stream":
            text = node_text(text, settings.stream_port_offset, [settings.address] if settings.address else [], without)
        target.write_text(text)
    if settings.worker_processes:
        main = directory / "main.conf"
        lines = [line for line in main.read_text().splitlines() if not line.startswith("worker_processes ")]
        main.write_text("\n".join([f"worker_processes {settings.worker_processes};", *lines]) + "\n")
    log_uses_meta = any(v in p.text for p in bundle.policies if p.scope == "http" or p.snippet for v in META_VARIABLES)
    node = {
        "generation": generation,
        "version": version,
        "policies": [p.hash for p in bundle.policies if p.scope == "location"],
        "http_port": settings.http_port,
        "https_port": settings.https_port,
        "files_dir": str(settings.directory / "files"),
        "builtin": f"unix:{settings.builtin_socket}",
        "metrics": settings.metrics,
        "metrics_per_host": settings.metrics_per_host,
        "meta": settings.metrics or log_uses_meta,
    }
    (directory / "node.json").write_bytes(msgspec.json.encode(node))
    (directory / "nginx.conf").write_text(nginx_conf(settings, bundle))


def prepare_node(settings: NodeSettings) -> None:
    """The parts of the node's directory that no generation owns: folders, the links to Lua and njs, the listener's own certificate."""
    for name in ("versions", "files", "streams", "run", "logs"):
        (settings.directory / name).mkdir(parents=True, exist_ok=True)
    for folder, mode in ((settings.control_socket.parent, 0o700), (settings.builtin_socket.parent, 0o711)):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():
            raise PermissionError(f"{folder} belongs to somebody else")
        folder.chmod(mode)
    for shipped in (LUA, NJS):
        link = settings.directory / shipped.name
        if not link.is_symlink() or link.readlink() != shipped:
            link.unlink(missing_ok=True)
            link.symlink_to(shipped)
    if not (settings.directory / "node.key").exists() or not (settings.directory / "node.crt").exists():
        certificate, key = self_signed()
        _private(settings.directory / "node.key", key)
        (settings.directory / "node.crt").write_bytes(certificate)


def _private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def self_signed() -> tuple[bytes, bytes]:
    """The certificate shown when no other fits, under the names that ingress-nginx's has: (certificate, key), PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme Co"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Kubernetes Ingress Controller Fake Certificate"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("ingress.local")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private
