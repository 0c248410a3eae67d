"""The nginx processes of one node: the only place that starts, signals and looks at them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import resource
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil
from msgspec import Struct

from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

WORKER = "nginx: worker process"
WORKER_USER = "www-data"
_GLOBALS = ("main.conf", "events.conf", "http.conf", "server.conf", "stream.conf")
_PLACE = re.compile(r" in (?P<file>\S+):\d+$", re.ASCII)


class TestResult(Struct, frozen=True, kw_only=True):
    """What `nginx -t` said."""

    ok: bool
    words: str = ""
    """nginx's first complaint, without time and process numbers."""
    policy: str = ""
    """The location policy whose file it names; empty: another file, or none."""
    scope: str = ""
    """The scope of the global policy whose file it names (`main`, `events`, `http`, `server`, `stream`)."""


def worker_user(directory: Path) -> str:
    """The user of the workers: Debian's www-data where nginx starts as root and that user can reach the node's directory."""
    if os.geteuid() != 0:
        return ""
    try:
        account = pwd.getpwnam(WORKER_USER)
    except KeyError:
        return ""
    for part in (directory, *directory.parents):
        mode = part.stat().st_mode
        if not mode & 0o001 and not (part.stat().st_gid == account.pw_gid and mode & 0o010):
            log.warning("workers run as root: www-data cannot reach the node's directory", closed=part)
            return "root"
    return WORKER_USER


def allow_many_files() -> None:
    """Of this process and what it starts: nginx's master holds each listening socket once a worker, and the usual soft limit is 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _title(process: psutil.Process) -> str:
    """What ps shows. nginx writes over its arguments, so how they are split means nothing."""
    return " ".join(process.cmdline()).strip("\0 ")


class Nginx:
    """One node's master and workers."""

    def __init__(self, binary: str, directory: Path) -> None:
        self._binary = binary
        self._directory = directory

    @property
    def pid(self) -> int:
        """The running master's pid; 0: none."""
        try:
            pid = int((self._directory / "run" / "nginx.pid").read_text())
            process = psutil.Process(pid)
            mine = str(self._directory) in _title(process)
        except (OSError, ValueError, psutil.Error):
            return 0
        return pid if mine and process.status() != psutil.STATUS_ZOMBIE else 0

    async def test(self, directory: Path) -> TestResult:
        """`nginx -t` on a version directory. Passing proves little; failing proves enough."""
        code, text = await self._run("-t", "-q", "-c", str(directory / "nginx.conf"))
        if code == 0:
            return TestResult(ok=True)
        return complaint(text or f"exit status {code}", directory)

    async def _run(self, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            self._binary,
            "-p",
            str(self._directory),
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            umask=0o077,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(60):
                _, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return 1, "nginx did not answer within 60 s"
        return process.returncode or 0, err.decode(errors="replace")

    async def start(self, sockets: Iterable[Path]) -> str:
        """Start a master on `current`; empty, or nginx's words. Orphans of a killed master keep serving until the new one does.
        `sockets`: of the last one, in the way if it was killed."""
        for leftover in (*sockets, self._directory / "run" / "nginx.pid"):
            _remove(leftover)
        code, text = await self._run("-c", "current/nginx.conf")
        if code != 0:
            return text.strip().splitlines()[0] if text.strip() else f"exit status {code}"
        return ""

    def orphans(self) -> set[int]:
        """Workers of this node whose master is gone. They serve on, with the rows of the moment it went, and share its listening sockets:
        whoever is not accepted by a worker that is gone as well waits until the last of them ends."""
        master = self.pid
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if _title(process).startswith(WORKER) and process.ppid() != master and self._owns(process.pid):
                    found.add(process.pid)
        return found

    def _owns(self, pid: int) -> bool:
        """Whether a process has this node's error log open: workers do not show their prefix."""
        log = str(self._directory.resolve() / "logs" / "error.log")
        return any(str(fd.readlink()) == log for fd in Path(f"/proc/{pid}/fd").iterdir())

    def end_orphans(self) -> int:
        """Let workers without a master finish and go, where there is a new master; how many there were."""
        orphans = self.orphans() if self.pid else set()
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGQUIT)
        return len(orphans)

    def reload(self) -> bool:
        return self._signal(signal.SIGHUP)

    def quit(self) -> bool:
        """Graceful: workers finish what they have begun."""
        return self._signal(signal.SIGQUIT)

    def _signal(self, number: signal.Signals) -> bool:
        pid = self.pid
        if not pid:
            return False
        try:
            os.kill(pid, number)
        except OSError:
            return False
        return True

    def workers(self) -> tuple[set[int], list[int]]:
        """(serving, draining oldest first) worker pids."""
        pid = self.pid
        if not pid:
            return set(), []
        serving: set[int] = set()
        draining: list[tuple[float, int]] = []
        for child in _children(pid):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(child)
                title = _title(process)
                if title.startswith(WORKER):
                    if "shutting down" in title:
                        draining.append((process.create_time(), child))
                    else:
                        serving.add(child)
        return serving, [p for _, p in sorted(draining)]

    def end_now(self, pids: Iterable[int]) -> None:
        """SIGKILL, which reaches stopped processes too."""
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def bound_draining(self, limit: int) -> None:
        """Old workers beyond `limit` end now: long connections must not pile up generations."""
        _, draining = self.workers()
        for pid in draining[: max(0, len(draining) - limit)]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)

    async def retired(self, workers: set[int], seconds: float) -> bool:
        """Whether these workers take no requests any more: they do not know what is new. One that hangs never says so."""
        for _ in range(int(seconds / 0.01)):
            if not workers & self.workers()[0]:
                return True
            await asyncio.sleep(0.01)
        return False

    async def wait_gone(self, seconds: float) -> bool:
        """Whether the master ended within so many seconds."""
        for _ in range(int(seconds / 0.05)):
            if not self.pid:
                return True
            await asyncio.sleep(0.05)
        return False

    def kill(self) -> None:
        """Everything, now."""
        serving, draining = self.workers()
        self.end_now({self.pid, *serving, *draining, *self.orphans()} - {0})


def complaint(text: str, directory: Path) -> TestResult:
    """What nginx's first complaint is, and about which file of a version directory."""
    lines = [line for line in text.splitlines() if "[emerg]" in line or "[crit]" in line or "[alert]" in line] or text.splitlines()
    words = re.sub(r"^.*?\[(emerg|crit|alert)\] (\d+#\d+: )?", "", lines[0])
    place = _PLACE.search(words)
    file = Path(place["file"]) if place else None
    policy = file.stem if file is not None and file.parent.name == "policies" else ""
    scope = file.stem if file is not None and file.name in _GLOBALS and not policy else ""
    return TestResult(ok=False, words=words.replace(str(directory) + "/", ""), policy=policy, scope=scope)


def stopped(pid: int) -> bool:
    """Whether a process is there but does not run (SIGSTOP)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _children(pid: int) -> list[int]:
    """Direct children, without looking at every process of the machine where the kernel tells."""
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        with contextlib.suppress(psutil.Error):
            return [c.pid for c in psutil.Process(pid).children()]
    return []


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def package_version() -> str:
    """Of Debian's package: distributions backport fixes without a new nginx version."""
    done = subprocess.run(["/usr/bin/dpkg-query", "-W", "-f=${Version}", "nginx"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
