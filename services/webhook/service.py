"""The webhook at work."""

from __future__ import annotations

import asyncio

from services.shared.telemetry.lifecycle import until
from services.shared.telemetry.logs import get_logger
from services.webhook.certificate import Reloader, server_context
from services.webhook.decide import Asker, Decider
from services.webhook.local import check_alone
from services.webhook.options import WebhookOptions
from services.webhook.server import Server

log = get_logger(__name__)

EXPIRY_CHECK_SECONDS = 3600.0


async def run(bus: Asker, options: WebhookOptions, stop: asyncio.Event) -> None:
    """Answer reviews until `stop`. Raises OSError where the port is taken or the certificate cannot be read."""
    context = server_context(options.certificate, options.key, options.client_ca)
    reloader = Reloader(context, options.certificate, options.key)
    decider = Decider(bus, check_alone, groups=options.groups, deadline_seconds=options.deadline_seconds)
    async with Server(decider, options, context, reloader).listening() as serving:
        log.info("listening", host=options.host, port=options.port, client_certificates=options.client_ca is not None)
        await until(stop, serving, reloader.run(options.certificate_check_seconds), _warn_of_expiry(reloader))


async def _warn_of_expiry(reloader: Reloader) -> None:
    while True:
        reloader.warn_if_expiring()
        await asyncio.sleep(EXPIRY_CHECK_SECONDS)
