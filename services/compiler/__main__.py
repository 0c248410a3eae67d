"""The compiler process: deltas of the CLUSTER stream in, versions of the CONFIG stream out."""

from __future__ import annotations

import asyncio

from services.compiler.service import CompilerOptions, serve
from services.shared.bus.jetstream import JetStreamBus
from services.shared.telemetry import lifecycle


def main(options: CompilerOptions) -> None:
    async def run(stop: asyncio.Event) -> None:
        async with JetStreamBus(options.bus, name="compiler") as bus:
            await serve(bus, options, stop)

    lifecycle.run("compiler", run)
