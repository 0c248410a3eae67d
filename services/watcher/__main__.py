"""The watcher's wiring: a directory of manifests in, the CLUSTER stream out."""

from __future__ import annotations

import asyncio

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus
from services.shared.telemetry import lifecycle
from services.watcher.options import WatcherOptions
from services.watcher.service import Watcher

__all__ = ["WatcherOptions", "main", "serve"]


async def serve(bus: Bus, options: WatcherOptions, stop: asyncio.Event) -> None:
    """Watch and publish on a connected bus until `stop`."""
    await Watcher(bus, options).run(stop)


def main(options: WatcherOptions) -> None:
    """A process of its own: SIGTERM and SIGINT end it."""

    async def connected(stop: asyncio.Event) -> None:
        async with JetStreamBus(options.bus, name=options.name) as bus:
            await serve(bus, options, stop)

    lifecycle.run("watcher", connected)
