"""Processes that an earlier `up` of the same state directory left behind when it was killed: found by pid *and* start time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from services.cli.state import StateDirectory
from services.shared.files import write_atomically


class Record(Struct, frozen=True, kw_only=True):
    """One running child, in `children.json`."""

    name: str
    pid: int
    created: float
    """psutil's create time: a pid that was given to another process since has another one."""


def record(name: str, pid: int) -> Record | None:
    """None: it is gone already."""
    try:
        return Record(name=name, pid=pid, created=psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def write_records(state: StateDirectory, records: Iterable[Record]) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end what runs; the ports check finds what the file does not name
        write_atomically(state.children_file, msgspec.json.encode(list(records)))


def children(state: StateDirectory) -> list[psutil.Process]:
    """What `children.json` names and still runs."""
    try:
        records = msgspec.json.decode(state.children_file.read_bytes(), type=list[Record])
    except (OSError, msgspec.DecodeError):
        return []
    found = []
    for one in records:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(one.pid)
            if abs(process.create_time() - one.created) < 0.01:
                found.append(process)
    return found


def nginx_master(node: Path) -> psutil.Process | None:
    """The nginx of a node's directory, if one runs."""
    try:
        process = psutil.Process(int((node / "run" / "nginx.pid").read_text()))
        command = process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if any("nginx" in part for part in command[:2]) and str(node) in " ".join(command) else None


def nginx_processes(node: Path) -> list[psutil.Process]:
    """The master of a node and its workers; workers whose master was killed, too."""
    master = nginx_master(node)
    if master is not None:
        with contextlib.suppress(psutil.Error):
            return [master, *master.children()]
    return []


def nodes_on_disk(state: StateDirectory) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(p for p in (state.root / "nodes").iterdir() if p.is_dir())
    return []


def end(processes: Iterable[psutil.Process], grace_seconds: float) -> list[str]:
    """SIGTERM, then SIGKILL; returns the names of what was ended. Blocks at most `grace_seconds` and a little."""
    victims = list(processes)
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(victims, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and psutil.wait_procs(alive, timeout=0.1)[1]:
        pass
    return [f"pid {p.pid}" for p in victims]
