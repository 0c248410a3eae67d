"""How an API server, or what stands before it, goes wrong: for `FakeKube`'s lists and watches."""

from __future__ import annotations

import asyncio
import random

from aiohttp import web

from tests.support.fake_kube import FakeKube, Way, error_event, status


def answers(code: int, reason: str, *, retry_after: str = "") -> Way:
    """An error instead of an answer."""

    async def way(_: FakeKube, __: web.Request) -> web.StreamResponse:
        return status(code, reason, f"scripted {code}", retry_after=retry_after)

    return way


def says(body: bytes) -> Way:
    """200, and this."""

    async def way(_: FakeKube, __: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return way


def fine() -> Way:
    """Nothing wrong this time."""

    async def way(_: FakeKube, __: web.Request) -> None:
        return None

    return way


def compacts() -> Way:
    """History is forgotten just before this request: 410 where it needs some."""

    async def way(kube: FakeKube, _: web.Request) -> None:
        kube.compact()

    return way


def streams(*lines: bytes, then: str = "end") -> Way:
    """A watch of these bytes. `then`: `end` it cleanly, `cut` the connection (in the middle of a chunk), or stay `silent`."""

    async def way(kube: FakeKube, request: web.Request) -> web.StreamResponse:
        response = await kube.begin_watch(request)
        for line in lines:
            await response.write(line)
        if then == "cut":
            transport = request.transport
            assert transport is not None
            transport.write(b'400\r\n{"type":"ADD')  # a chunk of 1,024 bytes that never comes
            await asyncio.sleep(0)
            transport.close()
        elif then == "silent":
            await asyncio.Event().wait()
        return response

    return way


def gone_event() -> Way:
    return streams(error_event(410, "Expired"))


def replays(seed: int) -> Way:
    """A watch that sends what history holds of its kind again, also from before its beginning, shuffled and twice; then it ends.

    As proxies and caches do that answer from another moment. Of each object the newest comes at least once.
    """

    async def way(kube: FakeKube, request: web.Request) -> web.StreamResponse | None:
        if int(request.query["resourceVersion"]) < kube.compacted:
            return None  # it does not have everything: 410
        plural = request.path.rsplit("/", 1)[-1]
        events = [e for e in kube.history if plural.startswith(e.key.kind.lower())]
        doubled = events + random.Random(seed).sample(events, len(events) // 2)
        random.Random(seed).shuffle(doubled)
        response = await kube.begin_watch(request)
        for event in doubled:
            await response.write(event.line)
        return response

    return way
