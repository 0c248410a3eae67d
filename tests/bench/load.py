"""Load for the data-plane benchmarks: wrk over many hosts, and the CPU time that nginx spent meanwhile."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
from msgspec import Struct

_SCRIPT = """
local hosts = {}
for line in io.lines(os.getenv("HOSTS_FILE")) do hosts[#hosts + 1] = line end
local requests = {}
function init()
  math.randomseed(os.time())
  for i, host in ipairs(hosts) do requests[i] = wrk.format("GET", "/", {["Host"] = host}) end
end
function request() return requests[math.random(#requests)] end
"""


class Load(Struct, frozen=True, kw_only=True):
    """One run."""

    requests_per_second: float
    cpu_microseconds_per_request: float
    """User and system time of nginx's workers."""
    errors: int
    """Non-2xx answers and socket errors."""


def _cpu(pids: Sequence[int]) -> float:
    times = [psutil.Process(p).cpu_times() for p in pids]
    return sum(t.user + t.system for t in times)


def wrk(port: int, hosts: Sequence[str], worker_pids: Sequence[int], scratch: Path, *, seconds: int, connections: int = 32) -> Load:
    """Keep-alive GET / with a random Host of `hosts`, for `seconds`."""
    script, names = scratch / "load.lua", scratch / "hosts"
    script.write_text(_SCRIPT)
    names.write_text("\n".join(hosts))
    before = _cpu(worker_pids)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}/"]
    out = subprocess.run(
        command, env={"HOSTS_FILE": str(names), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    ).stdout
    spent = _cpu(worker_pids) - before
    total = int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    socket = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    errors = (int(bad[1]) if bad else 0) + (sum(map(int, socket.groups())) if socket else 0)
    return Load(requests_per_second=rate, cpu_microseconds_per_request=spent / total * 1e6, errors=errors)
