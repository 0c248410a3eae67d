"""What nginx's processes show from outside: workers that crash, workers that hang, a master that is stopped. The decisions are plain
functions of what was seen and when (monotonic seconds)."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Final

from services.applier.control import Control
from services.applier.nginx import Nginx, stopped
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

CRASHES: Final = 3
CRASH_SECONDS: Final = 10.0
"""More crashes than that within this time are a loop."""
BLAME_SECONDS: Final = 30.0
"""A loop that begins so soon after an installation is its doing."""
SETTLE_SECONDS: Final = 2.0
"""After an installation old workers may end before they were seen to drain: that is no crash."""
HANG_SECONDS: Final = 10.0
"""A worker that has not come round in this time is ended; each counts once a second (lua/sluice/beat.lua)."""
LOOK_SECONDS: Final = 2.0


class Crashes:
    """Counts workers that ended without having been told to."""

    def __init__(self) -> None:
        self._master = 0
        self._workers: set[int] = set()
        self._ended: set[int] = set()
        """Those ended here: no crashes."""
        self._times: list[float] = []
        self._installed_at = float("-inf")

    def installed(self, now: float) -> None:
        self._installed_at = now
        self._times.clear()

    def ended(self, pids: Collection[int]) -> None:
        self._ended.update(pids)

    def note(self, master: int, serving: Collection[int], draining: Collection[int], now: float) -> int:
        """Look; how many crashed since the last look."""
        same = master == self._master  # a killed master leaves its workers running: they are not its successor's, and did not crash
        lost = self._workers - set(serving) - set(draining) - self._ended if same else set()
        self._master, self._workers = master, set(serving)
        self._ended &= self._workers
        if now - self._installed_at < SETTLE_SECONDS:
            return 0
        self._times = [t for t in self._times if now - t < CRASH_SECONDS] + [now] * len(lost)
        return len(lost)

    def loop(self, now: float) -> bool:
        """Whether workers crash again and again since the last installation."""
        recent = [t for t in self._times if now - t < CRASH_SECONDS]
        return len(recent) > CRASHES and now - self._installed_at < BLAME_SECONDS


class Beats:
    """Which workers no longer come round. The wall clock has no part in it, nor has a pause of this process."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int | None, float, int]] = {}
        """pid -> (its count, since when it has that, looks that found the same)."""

    def note(self, counts: Mapping[int, int | None], now: float) -> set[int]:
        """`counts`: of each serving worker (None: it has not counted yet); those that hang."""
        seen = {}
        hung = set()
        for pid, count in counts.items():
            before, since, looks = self._seen.get(pid, (count, now, 0))
            seen[pid] = (count, since, looks + 1) if before == count else (count, now, 1)
            if now - seen[pid][1] >= HANG_SECONDS and seen[pid][2] > 3:
                hung.add(pid)
        self._seen = seen
        return hung


class Watch:
    """Looks at one node's nginx, and ends what hangs: the master replaces a worker, the applier a master."""

    def __init__(self, nginx: Nginx, control: Control) -> None:
        self._nginx = nginx
        self._control = control
        self._beats = Beats()
        self._masters = Beats()
        self.crashes = Crashes()
        self._orphans_of = -1
        """The master whose predecessor's workers have been looked for, and were gone."""
        self._next_orphans = 0.0

    def workers(self, now: float) -> None:
        serving, draining = self._nginx.workers()
        lost = self.crashes.note(self._nginx.pid, serving, draining, now)
        if lost:
            log.warning("nginx workers ended by themselves; the master replaces them", count=lost)

    def orphans(self, now: float) -> None:
        """Workers without a master can be there at the start and after a master's death, and nowhere in between."""
        master = self._nginx.pid
        if not master or master == self._orphans_of or now < self._next_orphans:
            return
        self._next_orphans = now + LOOK_SECONDS
        if self._nginx.end_orphans():
            log.warning("workers without a master were told to end")
        else:
            self._orphans_of = master

    async def hung(self) -> str:
        """Look for processes that hang and end them; what was ended, or empty."""
        serving, _ = self._nginx.workers()
        counts = await self._control.beats(serving)
        if counts is None:  # nobody answers, which overload does too: then only what does not run at all is judged
            counts = {pid: 0 for pid in serving if stopped(pid)}
        now = time.monotonic()
        master = self._nginx.pid
        if self._masters.note({master: 0} if master and stopped(master) else {}, now):
            log.error("nginx's master is stopped; it is ended", pid=master)
            self._nginx.end_now([master])
            return "nginx's master was stopped, and was ended"
        hung = self._beats.note(counts, now)
        if not hung:
            return ""
        log.error("nginx workers hang; they are ended", pids=sorted(hung))
        self.crashes.ended(hung)
        self._nginx.end_now(hung)
        return f"{len(hung)} of {len(serving)} nginx workers had hung for {HANG_SECONDS:g} s, and were ended"
