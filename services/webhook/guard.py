"""Connections that do not get on are cut, and their number is bounded: a wrapper around the HTTP server's own protocol.

aiohttp bounds how long a kept-alive connection may idle, but not how long a client may take for the head of a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, cast

SWEEP_SECONDS: Final = 0.25


class Guard(asyncio.Protocol):
    """One connection."""

    def __init__(self, inner: asyncio.Protocol, guards: Guards) -> None:
        self._inner = inner
        self._guards = guards
        self._transport: asyncio.Transport | None = None
        self.waiting_since: float | None = time.monotonic()
        """Since when a request's head is being waited for; None: one is being answered, or nothing has come since."""
        self._busy = False

    def begin(self) -> None:
        """A request's head is complete."""
        self._busy, self.waiting_since = True, None

    def end(self) -> None:
        """It is answered."""
        self._busy = False

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        if not self._guards.add(self):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._guards.remove(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._busy and self.waiting_since is None:
            self.waiting_since = time.monotonic()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Guards:
    """All connections of a server."""

    def __init__(self, *, most: int, head_seconds: float) -> None:
        self._most = most
        self._head_seconds = head_seconds
        self._guards: set[Guard] = set()
        self.cut_count = 0

    def wrap(self, factory: Callable[[], asyncio.Protocol]) -> Callable[[], Guard]:
        """A protocol factory whose connections are guarded."""
        return lambda: Guard(factory(), self)

    def add(self, guard: Guard) -> bool:
        """False: there are too many."""
        if len(self._guards) >= self._most:
            self.cut_count += 1
            return False
        self._guards.add(guard)
        return True

    def remove(self, guard: Guard) -> None:
        self._guards.discard(guard)

    async def sweep(self) -> None:
        """Cut the slow ones, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            oldest = time.monotonic() - self._head_seconds
            for guard in [g for g in self._guards if g.waiting_since is not None and g.waiting_since < oldest]:
                self.cut_count += 1
                guard.cut()
