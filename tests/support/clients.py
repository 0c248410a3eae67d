"""Clients that do not forgive: a keep-alive HTTP/1.1 connection that never retries, and steady traffic that counts every wrong answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import websockets
from msgspec import Struct


class Answer(Struct, frozen=True, kw_only=True):
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    """Names in lower case; of a repeated header the last."""
    body: bytes


class Connection:
    """One TCP connection that is reused for every request. A close that the server has not announced is an error."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, host: str, path: str = "/", headers: dict[str, str] | None = None) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        extra = "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items())
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode())
        await writer.drain()
        answer = await _answer(reader)
        if answer.headers.get("connection") == "close":  # announced: after keep-alive-requests (1,000) of them
            await self.close()
        return answer

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(status=int(head[0].split()[1]), headers=headers, body=body)


class Failure(Struct, frozen=True, kw_only=True):
    """One request that did not get its right answer."""

    port: int
    at: float
    """Monotonic seconds."""
    text: str


@dataclass
class Tally:
    """What steady traffic has seen."""

    requests: int = 0
    messages: int = 0
    """Websocket echoes."""
    failures: list[Failure] = field(default_factory=list)


Check = Callable[[Answer], bool]


@contextlib.asynccontextmanager
async def steady(
    ports: list[int],
    host: str,
    check: Check,
    *,
    per_second: int = 200,
    connections: int = 8,
    websocket_host: str = "",
    websocket_path: str = "/",
) -> AsyncIterator[Tally]:
    """Open-loop traffic to all `ports` while the block runs: keep-alive requests, `per_second` in all, and one websocket a port.

    Every answer that `check` refuses, every closed connection and every lost websocket is a failure.
    """
    tally = Tally()
    stop = asyncio.Event()
    jobs: list[Awaitable[None]] = []
    period = connections * len(ports) / per_second
    for n in range(connections * len(ports)):
        jobs.append(_requests(ports[n % len(ports)], host, check, period, n / per_second, tally, stop))
    if websocket_host:
        jobs.extend(_echoes(port, websocket_host, websocket_path, tally, stop) for port in ports)
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        yield tally
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(seconds, 0))


async def _requests(port: int, host: str, check: Check, period: float, offset: float, tally: Tally, stop: asyncio.Event) -> None:
    connection = Connection(port)
    due = time.monotonic() + offset
    while not stop.is_set():
        await _pause(due - time.monotonic(), stop)
        due += period
        tally.requests += 1
        try:
            answer = await asyncio.wait_for(connection.get(host), 5)
            if not check(answer):
                tally.failures.append(Failure(port=port, at=time.monotonic(), text=f"{answer.status} {answer.body[:80]!r}"))
        except (OSError, EOFError, TimeoutError) as error:
            tally.failures.append(Failure(port=port, at=time.monotonic(), text=f"{type(error).__name__}: {error}"))
            await connection.close()
    await connection.close()


async def _echoes(port: int, host: str, path: str, tally: Tally, stop: asyncio.Event) -> None:
    try:
        async with websockets.connect(f"ws://{host}{path}", host="127.0.0.1", port=port, proxy=None) as socket:
            while not stop.is_set():
                await socket.send(f"{tally.messages}")
                await asyncio.wait_for(socket.recv(), 5)
                tally.messages += 1
                await _pause(0.1, stop)
    except (OSError, TimeoutError, websockets.WebSocketException) as error:
        tally.failures.append(Failure(port=port, at=time.monotonic(), text=f"websocket: {type(error).__name__}: {error}"))
