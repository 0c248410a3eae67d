"""Five small backends on the loopback address: two versions of a shop, an API, a websocket echo, a gRPC echo."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent import futures
from typing import Final

import grpc
from aiohttp import WSMsgType, web

PORTS: Final = {"shop": 9101, "shop-v2": 9102, "api": 9103, "live": 9104, "greeter": 9105}
HOST: Final = "127.0.0.1"
GRPC_METHOD: Final = "/demo.Echo/Say"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _shop(version: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f"shop {version}: {request.path_qs}\n")

    return answer


async def _api(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    return web.json_response(
        {"method": request.method, "path": request.path_qs, "bytes": len(body), "headers": dict(sorted(request.headers.items()))}
    )


async def _live(request: web.Request) -> web.StreamResponse:
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return web.Response(text="a websocket echo: connect with ws://\n")
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def _http(name: str, answer: Answer) -> web.AppRunner:
    app = web.Application(client_max_size=1024**3)
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, HOST, PORTS[name]).start()
    return runner


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """`/demo.Echo/Say`: bytes in, the same bytes out; no protobuf needed."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != GRPC_METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


def _grpc() -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=[_Echo()])
    server.add_insecure_port(f"{HOST}:{PORTS['greeter']}")
    server.start()
    return server


async def serve(stop: asyncio.Event) -> None:
    """All five, until `stop`. Raises OSError where a port is taken."""
    runners = [
        await _http("shop", _shop("v1")),
        await _http("shop-v2", _shop("v2")),
        await _http("api", _api),
        await _http("live", _live),
    ]
    server = _grpc()
    await stop.wait()
    server.stop(grace=None)
    for runner in runners:
        await runner.cleanup()
