"""Connections that do not get on are cut, and their number is bounded: a wrapper around the HTTP server's own protocol.

aiohttp bounds how long a kept-alive connection may idle, but not how long a client may take for the head of a request, nor how many
handshakes there are at once, which take most of the memory. Who comes when there is no room waits in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, cast

from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

SWEEP_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 0.1
"""After a connection could not be accepted: there are no file descriptors left."""


class Guard(asyncio.Protocol):
    """One connection."""

    def __init__(self, inner: asyncio.Protocol, guards: Guards) -> None:
        self._inner = inner
        self._guards = guards
        self._transport: asyncio.Transport | None = None
        self.waiting_since: float | None = time.monotonic()
        """Since when a request's head is being waited for; None: one is being answered, or nothing has come since."""
        self._busy = False

    @property
    def idle(self) -> bool:
        """Kept alive, between two requests."""
        return self._transport is not None and not self._transport.is_closing() and not self._busy and self.waiting_since is None

    def begin(self) -> None:
        """A request's head is complete."""
        self._busy, self.waiting_since = True, None

    def end(self) -> None:
        """It is answered."""
        self._busy = False

    def cut(self) -> None:
        if self._transport is not None and not self._transport.is_closing():  # asyncio's TLS cannot abort what is being closed
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.waiting_since = time.monotonic()
        self._inner.connection_made(transport)

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
        """From before their handshake."""
        self._room = asyncio.Event()
        self._room.set()
        self._greeting: set[asyncio.Task[None]] = set()
        self.cut_count = 0

    def remove(self, guard: Guard) -> None:
        self._guards.discard(guard)
        self._room.set()

    async def serve(self, listener: socket.socket, factory: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None) -> None:
        """Accept connections for as long as there is room, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._has_room()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a connection could not be accepted", error=error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            guard = Guard(factory(), self)
            self._guards.add(guard)
            task = asyncio.create_task(self._greet(guard, connection, context))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _has_room(self) -> None:
        while len(self._guards) >= self._most:
            self._room.clear()
            idle = next((g for g in self._guards if g.idle), None)
            if idle is not None:
                idle.cut()
            await self._room.wait()

    async def _greet(self, guard: Guard, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        limits = {} if context is None else {"ssl_handshake_timeout": self._head_seconds, "ssl_shutdown_timeout": 2.0}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: guard, connection, ssl=context, **limits)
        except OSError:  # a handshake that fails, or takes too long
            self.remove(guard)

    async def close(self) -> None:
        """No handshake is left behind."""
        for task in self._greeting:
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)

    async def sweep(self) -> None:
        """Cut the slow ones, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            oldest = time.monotonic() - self._head_seconds
            for guard in [g for g in self._guards if g.waiting_since is not None and g.waiting_since < oldest]:
                self.cut_count += 1
                guard.cut()
