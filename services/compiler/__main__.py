"""The compiler process: deltas of the CLUSTER stream in, versions of the CONFIG stream out."""

from __future__ import annotations

import asyncio
import sys

from services.compiler.service import CompilerOptions, serve
from services.shared.bus.jetstream import JetStreamBus
from services.shared.sealing.keyfile import BadKeyFile
from services.shared.telemetry import lifecycle
from services.shared.telemetry.health import Health


def main(options: CompilerOptions) -> None:
    async def run(stop: asyncio.Event) -> None:
        health = Health("compiler")
        async with health.listening(options.health_port), JetStreamBus(options.bus, name=options.name) as bus:
            await serve(bus, options, stop, health)

    try:
        lifecycle.run("compiler", run)
    except (BadKeyFile, OSError) as error:
        sys.exit(f"sluice compiler: {error}")
