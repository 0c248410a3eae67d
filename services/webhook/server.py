"""The HTTPS server: a bounded request in, a review out. The only `aiohttp` use beside `intake`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, cast

import msgspec
from aiohttp import web

from services.shared.telemetry.logs import get_logger
from services.webhook.bounds import BadJson, parse
from services.webhook.certificate import Reloader
from services.webhook.decide import Decider, Decision
from services.webhook.guard import Guard, Guards
from services.webhook.intake import Intake, Refused
from services.webhook.metrics import Metrics
from services.webhook.options import WebhookOptions
from services.webhook.review import NotAReview, Review, allow, deny, read_review

log = get_logger(__name__)

MAX_CONNECTIONS: Final = 192
"""Each takes up to 0.3 MB, most of it for TLS."""
MAX_PROBES: Final = 16
"""Connections to the health port."""
BACKLOG: Final = 1024
"""Connections that wait in the kernel until there is room."""
MAX_DECIDING: Final = 64
"""Reviews that wait for the compiler at once; more are turned away at once, while the API server still has time to try again."""
LARGE_BODY_BYTES: Final = 256 << 10
"""Larger bodies are parsed one at a time, in a thread."""


class Server:
    """See the module. `open` listens; `close` ends it."""

    def __init__(self, decider: Decider, options: WebhookOptions, context: ssl.SSLContext, reloader: Reloader) -> None:
        self._decider = decider
        self._options = options
        self._context = context
        self._reloader = reloader
        self._guards = Guards(most=MAX_CONNECTIONS, head_seconds=options.read_seconds)
        self._intake = Intake(read_seconds=options.read_seconds)
        self._metrics = Metrics()
        self._deciding = 0
        self._large = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Awaitable[None]]:
        """Serve while inside; what is yielded ends only by an exception. Raises OSError (the port is taken)."""
        app = web.Application(middlewares=[self._guarded], client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=75,
            lingering_time=1.0,
            auto_decompress=False,
            handler_cancellation=True,
            shutdown_timeout=2.0,
        )
        await runner.setup()
        http = cast(web.Server, runner.server)  # there is one after `setup`
        options, probes = self._options, Guards(most=MAX_PROBES, head_seconds=self._options.read_seconds)
        with contextlib.ExitStack() as sockets:
            listener = sockets.enter_context(_listener(options.host, options.port))
            work = [self._guards.sweep(), self._guards.serve(listener, http, self._context)]
            if options.health_port:
                listener = sockets.enter_context(_listener(options.host, options.health_port))
                work += [probes.sweep(), probes.serve(listener, http, None)]
            tasks = [asyncio.ensure_future(w) for w in work]
            try:
                yield _ends(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._guards.close()
                await probes.close()
                await runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        guard = request.transport.get_protocol() if request.transport else None
        if not isinstance(guard, Guard):
            return await handler(request)
        guard.begin()
        try:
            return await handler(request)
        finally:
            guard.end()

    async def _handle(self, request: web.Request) -> web.Response:
        if request.method in ("GET", "HEAD"):
            return self._status(request.path)
        try:
            if request.method != "POST":
                raise Refused(405, "POST an AdmissionReview")
            return await self._review(request)
        except Refused as refused:
            self._metrics.refused[refused.status] += 1
            return _plain(refused)

    def _status(self, path: str) -> web.Response:
        if path == "/healthz":
            return web.Response(text="ok\n")
        if path == "/metrics":
            text = self._metrics.text(connections_cut=self._guards.cut_count, certificate_expires_at=self._reloader.expires_at)
            return web.Response(text=text, content_type="text/plain", charset="utf-8")
        return web.Response(status=404, text="not found\n")

    async def _review(self, request: web.Request) -> web.Response:
        if request.scheme != "https":
            raise Refused(403, "reviews come over HTTPS")
        body = await self._intake.read(request)
        started = time.perf_counter()
        with body.taken() as data:
            review = await self._parse(data)
        if self._deciding >= MAX_DECIDING:
            raise Refused(503, "too many reviews at once; try again")
        self._deciding += 1
        try:
            decision = await self._decider.decide(review)
        finally:
            self._deciding -= 1
        self._metrics.last_seconds = time.perf_counter() - started
        return web.Response(body=msgspec.json.encode(self._answer(review, decision)), content_type="application/json")

    async def _parse(self, data: bytes) -> Review:
        try:
            if len(data) <= LARGE_BODY_BYTES:
                return read_review(parse(data))
            async with self._large:
                return read_review(await asyncio.to_thread(parse, data))
        except BadJson as error:
            raise Refused(400, f"the review cannot be decoded: {error}") from error
        except NotAReview as error:
            raise Refused(500, f"this webhook reviews Ingresses: {error}") from error

    def _answer(self, review: Review, decision: Decision) -> dict[str, Any]:
        answer = decision.answer
        self._metrics.reviews["allowed" if answer.allowed else "denied", decision.by] += 1
        if answer.allowed:
            return allow(review.uid, answer.warnings, decision.notes)
        log.info(
            "denied", ingress=f"{review.namespace}/{review.name}", by=decision.by, reasons=",".join(p.reason for p in answer.problems[:5])
        )
        return deny(review.uid, answer.problems, answer.warnings, decision.notes)


async def _ends(tasks: Sequence[asyncio.Future[None]]) -> None:
    await asyncio.gather(*tasks)


def _listener(host: str, port: int) -> socket.socket:
    made = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
    made.setblocking(False)
    return made


def _plain(refused: Refused) -> web.Response:
    response = web.Response(status=refused.status, text=refused.message + "\n")
    if refused.status == 503:
        response.headers["Retry-After"] = "1"
    # What is left of the body is not worth reading.
    response.force_close()
    return response
