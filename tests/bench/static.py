"""The yardstick: the same nginx, the same headers and timeouts, with hand-written server, location and upstream blocks."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from msgspec import Struct

NGINX = "/usr/sbin/nginx"


class Running(Struct, frozen=True, kw_only=True):
    """An nginx started for a benchmark."""

    master: int
    port: int

    def workers(self) -> list[int]:
        return [p.pid for p in psutil.Process(self.master).children()]

    def memory_per_process(self) -> float:
        """Bytes: the proportional set size of the workers, averaged; shared memory counts in each process's share."""
        sizes = [psutil.Process(p).memory_full_info() for p in self.workers()]
        return sum(s.rss for s in sizes) / len(sizes)


@contextlib.contextmanager
def nginx(directory: Path, conf: str | None, port: int, *, conf_path: str = "nginx.conf") -> Iterator[Running]:
    """`conf` as a whole configuration, in the foreground of a temporary prefix."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    if conf is not None:
        (directory / conf_path).write_text(conf)
    process = subprocess.Popen([NGINX, "-p", str(directory), "-c", conf_path, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if any(c.laddr.port == port for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN):
                    break
            if process.poll() is not None:
                raise RuntimeError(f"nginx ended with {process.returncode}: see {directory}/logs/error.log")
            time.sleep(0.02)
        yield Running(master=process.pid, port=port)
    finally:
        process.terminate()
        process.wait(30)


_HEAD = """
worker_processes 1;
worker_rlimit_nofile 65536;
pid {dir}/nginx.pid;
error_log {dir}/logs/error.log error;
events {{ worker_connections 16384; }}
"""


def backend_conf(directory: Path, port: int) -> str:
    """Answers every request at once, with 200 and a short body."""
    return (
        _HEAD.format(dir=directory)
        + f"http {{ access_log off; keepalive_requests 1000000; server {{ listen 127.0.0.1:{port} backlog=4096; return 200 'ok'; }} }}\n"
    )


HEADERS = """
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  proxy_set_header X-Request-ID $request_id;
  proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Host $http_host;
  proxy_set_header X-Forwarded-Port $server_port;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header X-Forwarded-Scheme $scheme;
  proxy_set_header X-Scheme $scheme;
  proxy_set_header X-Original-Forwarded-For $http_x_forwarded_for;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection "";
  proxy_set_header Proxy "";
  proxy_connect_timeout 5s; proxy_send_timeout 60s; proxy_read_timeout 60s;
  proxy_buffering off; proxy_buffer_size 4k; proxy_buffers 4 4k;
  proxy_next_upstream error timeout; proxy_next_upstream_tries 3;
  proxy_redirect off; client_max_body_size 1m;
"""


def static_conf(directory: Path, port: int, hosts: Sequence[str], backend_port: int) -> str:
    """One server, one upstream and three one-line locations a host, as a person would write them."""
    (directory / "proxy.conf").write_text(HEADERS)
    blocks = []
    for i, host in enumerate(hosts):
        blocks.append(
            f"upstream u{i} {{ server 127.0.0.1:{backend_port}; keepalive 320; }}\n"
            f"server {{ listen {port}; server_name {host};\n"
            f" location / {{ proxy_pass http://u{i}; include {directory}/proxy.conf; }}\n"
            f" location /api/ {{ proxy_pass http://u{i}; include {directory}/proxy.conf; }}\n"
            f" location /static/ {{ proxy_pass http://u{i}; include {directory}/proxy.conf; }}\n}}\n"
        )
    longest = max(len(h) for h in hosts)
    return (
        _HEAD.format(dir=directory)
        + "http { access_log off; keepalive_requests 1000000; server_tokens off; variables_hash_max_size 4096;\n"
        + f"server_names_hash_bucket_size {128 if longest > 50 else 64}; server_names_hash_max_size {max(1024, 2 * len(hosts))};\n"
        + f"server {{ listen {port} default_server backlog=4096; return 404; }}\n"
        + "".join(blocks)
        + "}\n"
    )
