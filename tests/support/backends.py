"""Small real backends for system tests, in a thread of their own: they answer with their name, and echo websockets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import WSMsgType, web


def _answers(name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await _echo(request) or web.Response(text=f"{name} {request.path_qs}")

    return answer


async def _echo(request: web.Request) -> web.StreamResponse | None:
    if request.headers.get("Upgrade", "").lower() == "websocket":
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
        return socket
    return None


@contextlib.contextmanager
def backends(*names: str, address: str = "127.0.0.1") -> Iterator[dict[str, int]]:
    """name -> port on `address`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners: list[web.AppRunner] = []

    async def start() -> dict[str, int]:
        ports = {}
        for name in names:
            app = web.Application()
            app.router.add_route("*", "/{tail:.*}", _answers(name))
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, keepalive_timeout=3600)
            await runner.setup()
            site = web.TCPSite(runner, address, 0)
            await site.start()
            runners.append(runner)
            ports[name] = runner.addresses[0][1]
        return ports

    async def end() -> None:
        for runner in runners:
            await runner.cleanup()

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
