"""One supervised process: started in a session of its own, restarted with backoff when it ends, told to end when the supervisor does."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 20.0
"""A process that lived this long starts over with the first delay."""
HANG_SECONDS: Final = 12.0
"""Longer than anything that holds up an event loop for good reason: the first compile of a large cluster yields every 20 ms."""
FIRST_BEAT_SECONDS: Final = 60.0
"""A process that has not touched its file yet is still starting."""
LOOK_SECONDS: Final = 1.0
LOOP_EXITS: Final = 3
"""So many short lives in a row are called a crash loop."""
ANSWER_SECONDS: Final = 2.0
TAIL_LINES: Final = 3

_PR_SET_PDEATHSIG: Final = 1
_prctl: Final = ctypes.CDLL(None, use_errno=True).prctl


class Spec(Struct, frozen=True, kw_only=True):
    """What to run."""

    name: str
    argv: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = {}
    """In addition to the supervisor's own."""
    beat: Path | None = None
    """A file that the process touches once a second; it is killed when it has not for `HANG_SECONDS`. None: it is not watched."""
    health: str = ""
    """A URL on this machine that is asked instead; anything but 200 counts as silence."""
    death_signal: int = signal.SIGTERM
    """What the kernel sends when the supervisor dies without a word. SIGKILL for an applier: its nginx then goes on serving."""


class Exit(Struct, frozen=True, kw_only=True):
    """How one life ended."""

    name: str
    how: str
    """`exit status 1`, `killed by SIGKILL`, `cannot be started: ...`."""
    lived_seconds: float
    restart_in_seconds: float
    short_lives: int
    """In a row, this one included."""
    tail: str
    """The last lines of its log, where it ended with an error."""


Started = Callable[[str, int], None]
Ended = Callable[[Exit], None]


class Child:
    """`run` until `end` is called; `started` and `ended` are told about each life."""

    def __init__(self, spec: Spec, started: Started, ended: Ended) -> None:
        self.spec = spec
        self.pid = 0
        """0: not running at this moment."""
        self.lives = 0
        self._started = started
        self._ended = ended
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = 0
        """So many times its health URL has said ok."""
        self._ending = asyncio.Event()
        self._gone = asyncio.Event()
        self._gone.set()

    async def run(self) -> None:
        short_lives = 0
        while not self._ending.is_set():
            began = time.monotonic()
            how = await self._live()
            lived = time.monotonic() - began
            if self._ending.is_set():
                return
            short_lives = 1 if lived >= STEADY_SECONDS else short_lives + 1
            delay = backoff_seconds(short_lives, random.random())  # noqa: S311 - jitter
            tail = self._tail()
            self._ended(
                Exit(name=self.spec.name, how=how, lived_seconds=lived, restart_in_seconds=delay, short_lives=short_lives, tail=tail)
            )
            await _wait(self._ending, delay)

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM, then after the grace time SIGKILL. Returns when it is gone."""
        self._ending.set()
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._gone.wait()
        self.kill()
        await self._gone.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # Popen does not signal what it has already reaped

    def kill(self) -> None:
        self._ending.set()
        self.signal(signal.SIGKILL)

    async def _live(self) -> str:
        """One life; says how it ended."""
        try:
            with self.spec.log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own commands; forking does not wait
                    self.spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.spec.environment},
                    start_new_session=True,  # Ctrl-C reaches the supervisor alone
                    preexec_fn=_die_with(self.spec.death_signal, os.getpid()),
                )
        except (OSError, subprocess.SubprocessError) as error:
            return f"cannot be started: {error}"
        self._gone.clear()
        self.pid = self._process.pid
        self.lives += 1
        self._started(self.spec.name, self.pid)
        watched = self.spec.beat is not None or self.spec.health
        watching = asyncio.create_task(self._watch(self._process)) if watched else None
        try:
            await _exited(self._process)
        finally:
            if watching is not None:
                watching.cancel()
        status = self._process.returncode
        self._process, self.pid = None, 0
        self._gone.set()
        hung = " after it hung" if watching is not None and watching.done() and not watching.cancelled() else ""
        return f"killed by {signal.Signals(-status).name}{hung}" if status < 0 else f"exit status {status}"

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Ends by killing the process: it has given no sign of life for too long. Only this process's own clock counts."""
        loop = asyncio.get_running_loop()
        last, since, looks, limit = await self._sign_of_life(), loop.time(), 0, FIRST_BEAT_SECONDS
        while loop.time() - since < limit or looks < limit / LOOK_SECONDS / 2:
            await asyncio.sleep(LOOK_SECONDS)
            sign = await self._sign_of_life()
            if sign != last:
                last, since, looks, limit = sign, loop.time(), 0, HANG_SECONDS
            looks += 1  # a supervisor that was stopped itself finds all clocks advanced
        process.kill()

    async def _sign_of_life(self) -> int:
        """Another value whenever there was one."""
        if self.spec.health:
            self._answers += await asyncio.to_thread(_says_ok, self.spec.health)
            return self._answers
        return _touched(self.spec.beat)

    def _tail(self) -> str:
        try:
            with self.spec.log.open("rb") as log:
                log.seek(max(0, self.spec.log.stat().st_size - 4000))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-TAIL_LINES:])


def _touched(file: Path | None) -> int:
    try:
        return file.stat().st_mtime_ns if file is not None else 0
    except OSError:
        return 0


def _says_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - the supervisor's own
            return bool(answer.status == http.HTTPStatus.OK)
    except (OSError, http.client.HTTPException):
        return False


def backoff_seconds(short_lives: int, share: float) -> float:
    """Doubling from the first delay to the longest, of which at least half (`share` 0) and at most all (`share` 1) is waited."""
    full = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(short_lives - 1, 20))
    return float(full * (0.5 + share / 2))


def _die_with(number: int, parent: int) -> Callable[[], None]:
    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


async def _exited(process: subprocess.Popen[bytes]) -> None:
    """Waits without a thread: a pidfd becomes readable when the process ends."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    fd = os.pidfd_open(process.pid)
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    process.wait()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
