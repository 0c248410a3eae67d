"""Small real backends, in a thread of their own: they answer with their name or with what they received, or keep the bytes of a request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import WSMsgType, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def _thread() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines in a loop of another thread and waits for their results."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda job: asyncio.run_coroutine_threadsafe(job, loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def _applications(handlers: Mapping[str, Handler], address: str, tls: ssl.SSLContext | None = None) -> Iterator[dict[str, int]]:
    """name -> port."""
    runners: list[web.AppRunner] = []

    async def start() -> dict[str, int]:
        ports = {}
        for name, handler in handlers.items():
            app = web.Application(client_max_size=1024**3)
            app.router.add_route("*", "/{tail:.*}", handler)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, keepalive_timeout=3600)
            await runner.setup()
            await web.TCPSite(runner, address, 0, ssl_context=tls).start()
            runners.append(runner)
            ports[name] = runner.addresses[0][1]
        return ports

    async def end() -> None:
        for runner in runners:
            await runner.cleanup()

    with _thread() as run:
        try:
            yield run(start())
        finally:
            run(end())


async def _websocket(request: web.Request) -> web.StreamResponse | None:
    """Sends every message back; None: this is no websocket."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return None
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


def _named(name: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await _websocket(request) or web.Response(text=f"{name} {request.path_qs}")

    return answer


@contextlib.contextmanager
def backends(*names: str, address: str = "127.0.0.1") -> Iterator[dict[str, int]]:
    """name -> port on `address`. They answer `<name> <path and query>`, and echo websockets."""
    with _applications({name: _named(name) for name in names}, address) as ports:
        yield ports


# --- backends that say what they received


class Echoes(NamedTuple):
    """Running backends."""

    ports: dict[str, int]
    asked: list[dict[str, Any]]
    """What the one named `auth` received, oldest first."""


@contextlib.contextmanager
def echoes(*names: str, tls: ssl.SSLContext | None = None) -> Iterator[Echoes]:
    """Backends that answer what they received, as JSON; with `tls` they speak HTTPS. They echo websockets.

    A query asks for more: `status`, `sleep`, `h-<name>` (a response header), `size` or `chunks` (so many bytes of `pattern`, with a
    Content-Length or chunked). The one named `auth` allows requests with `X-Token: good`, and answers others 401 or their `X-Fail`.
    """
    asked: list[dict[str, Any]] = []
    handlers: dict[str, Handler] = {n: _auth(asked) if n == "auth" else _echo(n) for n in names}
    with _applications(handlers, "127.0.0.1", tls) as ports:
        yield Echoes(ports, asked)


def _echo(name: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        if socket := await _websocket(request):
            return socket
        body = await request.read()
        query = request.query
        if "size" in query:
            return web.Response(body=pattern(int(query["size"])))
        if "chunks" in query:
            return await _chunked(request, pattern(int(query["chunks"])))
        if "sleep" in query:
            await asyncio.sleep(float(query["sleep"]))
        extra = {k.removeprefix("h-"): v for k, v in query.items() if k.startswith("h-")}
        return web.json_response(_received(name, request, body), status=int(query.get("status", "200")), headers=extra)

    return answer


def _auth(asked: list[dict[str, Any]]) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(_received("auth", request, await request.read()))
        challenge = {"WWW-Authenticate": "Token"}
        if request.headers.get("X-Token") != "good":
            return web.Response(status=int(request.headers.get("X-Fail", "401")), headers=challenge)
        return web.Response(headers=challenge | {"X-User": "alice", "Set-Cookie": "auth=1"})

    return answer


def _received(name: str, request: web.Request, body: bytes) -> dict[str, Any]:
    headers = {k.lower(): v for k, v in request.headers.items()}
    transport = request.transport
    peer, own = (transport.get_extra_info(x)[1] if transport is not None else 0 for x in ("peername", "sockname"))
    out = {"name": name, "method": request.method, "path": request.raw_path, "headers": headers, "from": peer, "port": own}
    return out | {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def pattern(size: int) -> bytes:
    """So many bytes, in which a lost or repeated piece shows."""
    numbers = b"".join(n.to_bytes(4, "big") for n in range(16_384))
    return (numbers * (size // len(numbers) + 1))[:size]


async def _chunked(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    for at in range(0, len(body), 100_000):
        await response.write(body[at : at + 100_000])
    return response


# --- a backend that understands nothing


@dataclass
class Recorder:
    """A running backend that keeps the bytes it receives, unparsed."""

    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    """Request line and header of each request, oldest first."""
    answered: int = 0
    """Answers that left this process, but for what fits its last buffer (64 kB)."""

    @property
    def last_line(self) -> bytes:
        """The last request's first line."""
        return self.heads[-1].split(b"\r\n", 1)[0]


@contextlib.contextmanager
def recorder(*, hang_up: bool = False, body: bytes = b"ok") -> Iterator[Recorder]:
    """Answers requests without a body with 200 and `body`, and keeps its connections open. `hang_up`: closes them instead."""
    found = Recorder()
    open_now: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        open_now.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                found.heads.append(await reader.readuntil(b"\r\n\r\n"))
                if hang_up:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
                found.answered += 1
        open_now.discard(writer)
        writer.close()

    async def end(server: asyncio.Server) -> None:
        server.close()
        for writer in list(open_now):
            writer.close()
        await server.wait_closed()
        while len(asyncio.all_tasks()) > 1:  # each ends when it sees its connection closed
            await asyncio.sleep(0)

    with _thread() as run:
        server = run(asyncio.start_server(serve, "127.0.0.1", 0))
        found.port = server.sockets[0].getsockname()[1]
        try:
            yield found
        finally:
            run(end(server))
