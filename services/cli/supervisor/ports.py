"""Which ports `up` needs, whether they are free, and who has them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable

import psutil
from msgspec import Struct


class Wanted(Struct, frozen=True, kw_only=True):
    """One TCP port and what it is for."""

    port: int
    use: str
    """`http of node-0`."""
    option: str
    """The option that moves it."""


def clash(wanted: Iterable[Wanted]) -> str:
    """A sentence if two uses want the same port, or one is out of range."""
    seen: dict[int, Wanted] = {}
    for want in wanted:
        if not 1 <= want.port <= 65535:
            return f"{want.use} would listen on port {want.port}, which does not exist; choose a lower {want.option}"
        other = seen.setdefault(want.port, want)
        if other is not want:
            return f"{other.use} and {want.use} would both listen on port {want.port}; move one with {want.option}"
    return ""


def taken(wanted: Iterable[Wanted], ours: Collection[int] = ()) -> str:
    """A sentence for the first port that another process has; `ours`: pids that are about to be replaced or adopted."""
    for want in wanted:
        reason = _refused(want.port)
        if not reason:
            continue
        holders = _holders(want.port)
        if holders and all(pid in ours for pid in holders):
            continue
        who = ", ".join(_name(pid) for pid in holders) or ("another process" if reason == errno.EADDRINUSE else "")
        if reason == errno.EACCES:
            return f"port {want.port} ({want.use}) needs root; choose another with {want.option}"
        return f"port {want.port} ({want.use}) is taken by {who}; choose another with {want.option}, or stop that process"
    return ""


def free_port() -> int:
    """A port on the loopback address that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    return not _refused(port)


def _refused(port: int) -> int:
    """The error number of a trial bind on all addresses; 0: it is free. SO_REUSEADDR as nginx has it: TIME_WAIT does not count."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - bound for a moment, never listening
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return error.errno
    return 0


def _holders(port: int) -> list[int]:
    """Pids that listen on it, as far as this user may know."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return sorted({c.pid for c in found if c.pid and c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port})


def _name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
