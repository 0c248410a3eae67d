"""The webhook's wiring: HTTPS in, questions to the compiler out."""

from __future__ import annotations

import asyncio

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus
from services.shared.telemetry import lifecycle
from services.webhook import service
from services.webhook.certificate import CertificatePaths, make_certificate
from services.webhook.options import WebhookOptions

__all__ = ["CertificatePaths", "WebhookOptions", "main", "make_certificate", "serve"]


async def serve(bus: Bus, options: WebhookOptions, stop: asyncio.Event) -> None:
    """Answer on a connected (or connecting) bus until `stop`."""
    await service.run(bus, options, stop)


def main(options: WebhookOptions) -> None:
    """A process of its own: SIGTERM and SIGINT end it."""

    async def connecting(stop: asyncio.Event) -> None:
        # It answers from its own checks before the bus is there, and without it.
        bus = JetStreamBus(options.bus, name=options.name)
        entering = asyncio.ensure_future(bus.__aenter__())
        try:
            await serve(bus, options, stop)
        finally:
            entering.cancel()
            await asyncio.gather(entering, return_exceptions=True)
            await bus.__aexit__()

    lifecycle.run("webhook", connecting)
