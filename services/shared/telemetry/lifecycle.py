"""The life of a service process: signals become an event, the main coroutine ends, the exit status says how."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from services.shared.telemetry import logs, tracing

BEAT_VARIABLE: Final = "SLUICE_BEAT_FILE"
"""Environment: a file that the process touches while its event loop comes round, for who watches over it."""
BEAT_SECONDS: Final = 1.0

Serve = Callable[[asyncio.Event], Awaitable[None]]


def run(service: str, serve: Serve, *, node: str = "") -> None:
    """Run `serve(stop)` until it returns; SIGTERM and SIGINT set `stop`."""
    gc.set_threshold(200_000, 20, 50)  # a cluster's objects live long: looking at them all again and again costs tens of milliseconds
    logs.configure(f"{service}/{node}" if node else service)
    tracing.configure(service, node)
    asyncio.run(_main(serve))


async def _main(serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    beat = asyncio.create_task(_beat(Path(os.environ[BEAT_VARIABLE]))) if os.environ.get(BEAT_VARIABLE) else None
    try:
        await serve(stop)
    finally:
        if beat is not None:
            beat.cancel()


async def _beat(file: Path) -> None:
    while True:
        with contextlib.suppress(OSError):  # a full disk is no hang: the file's time can still be set, where it exists
            file.touch()  # noqa: ASYNC240 - it does not wait
        await asyncio.sleep(BEAT_SECONDS)


async def until(stop: asyncio.Event, *coroutines: Awaitable[None]) -> None:
    """Run all until `stop` is set, then cancel them. One that ends with an exception ends all, and raises."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(c) for c in coroutines]
    waiting: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task is not waiting:
                task.result()
    finally:
        pending = {*tasks, waiting}
        while pending:
            # More than once if need be: `asyncio.wait_for` (in libraries) loses a cancellation that meets a result.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.5)
        await asyncio.gather(*tasks, waiting, return_exceptions=True)


def settled() -> None:
    """What exists now stays: the collector need not look at it any more. (Nor once before: that takes 0.2 s at 10,000 Ingresses.)"""
    gc.freeze()
