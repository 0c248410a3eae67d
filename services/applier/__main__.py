"""The applier process: versions of the CONFIG stream in; a running nginx, and reports of it, out."""

from __future__ import annotations

import asyncio
import sys

from services.applier.enrol import bus_address
from services.applier.options import ApplierOptions
from services.applier.service import serve
from services.applier.store import NodeLocked
from services.shared.bus.jetstream import NodeBus
from services.shared.telemetry import lifecycle


def main(options: ApplierOptions) -> None:
    async def run(stop: asyncio.Event) -> None:
        await serve(NodeBus(bus_address(options), name=f"applier-{options.node}"), options, stop)

    try:
        lifecycle.run("applier", run, node=options.node)
    except (NodeLocked, OSError) as error:
        sys.exit(f"sluice applier: {error}")
