"""nginx as an applier sees it, without nginx: pushes and reloads in, what would be live (and since when) out.

It stands behind the two classes by which the applier reaches nginx, `Nginx` (processes) and `Control` (the socket): all else is the applier's
own code. What nginx itself would take is not in any figure: no test, no reload, no shared memory.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec

from services.applier.control import Control, Generation, PushResult
from services.applier.nginx import Nginx, TestResult
from services.shared.contracts.tables import PushHeader

Live = Callable[[str, str, float], None]
"""version, digest of its whole content (empty: some rows wait), unix seconds."""


class Edge:
    """What the workers of one node would hold."""

    def __init__(self, directory: Path, live: Live, *, keep_rows: bool = False) -> None:
        """`keep_rows`: to compare them afterwards; else they are checked and forgotten, so that memory per node is the applier's."""
        self._directory = directory
        self._live = live
        self._keep_rows = keep_rows
        self.running = False
        self.generation = 0
        self.version = ""
        self.digest = ""
        self.rows: dict[str, bytes] = {}

    def load(self) -> None:
        """A start or a reload on `current`. Rows outlive a reload; a start takes them from the disk."""
        current = self._directory / "current"
        self.generation = msgspec.json.decode((current / "node.json").read_bytes())["generation"]
        if self.running:
            return
        self.running = True
        first, _, body = (current / "tables.tsv").read_bytes().partition(b"\n")
        header: dict[str, str] = msgspec.json.decode(first)
        self._take(b"".join(b"+" + line + b"\n" for line in body.split(b"\n")[:-1]))
        self._note(header["version"], header["digest"])

    def push(self, body: bytes) -> PushResult:
        first, _, lines = body.partition(b"\n")
        header = msgspec.json.decode(first, type=PushHeader)
        if header.crc32 != zlib.crc32(lines):
            return PushResult(outcome="refused", detail="the sum is another")
        if header.base and header.base != self.version:
            return PushResult(outcome="other base", detail=self.version)
        if not header.base:
            self.rows.clear()
        self._take(lines)
        self._note(header.version, header.digest)
        return PushResult(outcome="live")

    def _take(self, lines: bytes) -> None:
        for line in lines.split(b"\n")[:-1] if self._keep_rows else ():
            key, _, row = line[1:].partition(b"\t")
            if line[:1] == b"+":
                self.rows[key.decode()] = row
            else:
                self.rows.pop(key.decode(), None)

    def _note(self, version: str, digest: str) -> None:
        self.version, self.digest = version, digest
        self._live(version, digest, time.time())


class SimulatedControl(Control):
    """The socket of an `Edge`."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(Path("/nonexistent"))
        self._edge = edge

    async def push(self, body: bytes) -> PushResult:
        return self._edge.push(body)

    async def generation(self) -> Generation | None:
        edge = self._edge
        if not edge.running:
            return None
        return Generation(generation=edge.generation, version=edge.version, digest=edge.digest, pid=os.getpid())

    async def beats(self, pids: Collection[int]) -> dict[int, int | None] | None:
        return {pid: time.monotonic_ns() for pid in pids}

    async def stats(self) -> dict[str, Any] | None:
        return {}

    async def metrics(self) -> str:
        return ""


class SimulatedNginx(Nginx):
    """The processes of an `Edge`: this process stands for all of them, and no signal is sent."""

    def __init__(self, directory: Path, edge: Edge) -> None:
        super().__init__("", directory)
        self._edge = edge

    @property
    def pid(self) -> int:
        return os.getpid() if self._edge.running else 0

    async def test(self, directory: Path) -> TestResult:
        return TestResult(ok=(directory / "nginx.conf").exists())

    async def start(self, sockets: Iterable[Path]) -> str:
        self._edge.load()
        return ""

    def reload(self) -> bool:
        self._edge.load()
        return True

    def workers(self) -> tuple[set[int], list[int]]:
        return ({self.pid} if self._edge.running else set()), []

    def orphans(self) -> set[int]:
        return set()

    def end_orphans(self) -> int:
        return 0

    def bound_draining(self, limit: int) -> None:
        return

    async def retired(self, workers: set[int], seconds: float) -> bool:
        return True

    def end_now(self, pids: Iterable[int]) -> None:
        return

    def quit(self) -> bool:
        self._edge.running = False
        return True

    async def wait_gone(self, seconds: float) -> bool:
        return True

    def kill(self) -> None:
        self._edge.running = False
