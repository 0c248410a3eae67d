"""When to look, and where: the file system's events as sets of paths relative to the root. The only `watchfiles` import."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from watchfiles import awatch

from services.shared.telemetry.logs import get_logger
from services.watcher.sources.port import Hint
from services.watcher.sources.scan import is_manifest_path

log = get_logger(__name__)

STEP_MILLISECONDS: Final = 5
"""How often events are collected: they arrive after 7 ms on average, at 1.2 % of one core when idle (10: 11 ms, 0.7 %)."""
DEBOUNCE_MILLISECONDS: Final = 50
"""The longest wait while events keep coming."""
RETRY_SECONDS: Final = 0.5
"""Where watching is not possible (no such directory, no more inotify watches), everything is looked at so often instead."""


async def watch(root: Path, stop: asyncio.Event) -> AsyncIterator[Hint]:
    """Hints until `stop`. The first comes once the watch is established: whoever looks then misses nothing."""
    while not stop.is_set():
        try:
            async for hint in _watch_once(root, stop):
                yield hint
        except (OSError, RuntimeError) as error:
            log.warning("cannot watch the directory, looking at it periodically", root=root, error=error)
        if not stop.is_set():
            yield Hint(everything=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await stop.wait()


async def _watch_once(root: Path, stop: asyncio.Event) -> AsyncIterator[Hint]:
    """Hints until the directory is replaced by another, or `stop`."""
    base, identity = _resolve(root), _identity(root)
    events = awatch(
        base,
        watch_filter=None,
        debounce=DEBOUNCE_MILLISECONDS,
        step=STEP_MILLISECONDS,
        stop_event=stop,
        rust_timeout=1000,
        yield_on_timeout=True,
    )
    step = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.sleep(0)  # runs it up to its first wait: the watch exists now
        yield Hint(everything=True)
        while (changes := await step) is not None:
            step = asyncio.ensure_future(anext(events, None))
            if changes:
                yield _hint(base, {path for _, path in changes})
            if _identity(root) != identity:
                return
    finally:
        step.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await step
        await events.aclose()


def _resolve(root: Path) -> Path:
    return root.resolve()


def _identity(root: Path) -> tuple[int, int]:
    found = root.stat()
    return found.st_dev, found.st_ino


def _hint(base: Path, absolute: set[str]) -> Hint:
    paths: set[str] = set()
    for path in absolute:
        relative = os.path.relpath(path, base)
        parts = relative.split("/")
        if relative == "." or any(part.startswith("..") for part in parts):
            return Hint(everything=True)  # the root itself; `..data`, as the kubelet swaps it
        if any(part.startswith(".") for part in parts):
            continue
        if not is_manifest_path(relative) and Path(path).is_dir():
            return Hint(everything=True)
        paths.add(relative)
    return Hint(paths=frozenset(paths))
