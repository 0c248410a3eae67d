"""The watcher's wiring: a directory of manifests or an API server in, the CLUSTER stream out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus
from services.shared.sealing.keyfile import BadKeyFile
from services.shared.telemetry import lifecycle
from services.watcher.options import WatcherOptions
from services.watcher.service import Elect, Told, Watcher
from services.watcher.sources.port import Source
from services.watcher.status.events import EventWriter
from services.watcher.status.reporting import Reporting
from services.watcher.status.writer import StatusWriter

__all__ = ["WatcherOptions", "main", "serve"]


async def serve(bus: Bus, options: WatcherOptions, stop: asyncio.Event) -> None:
    """Watch and publish on a connected bus until `stop`."""
    async with _source(bus, options) as (source, elect, reporting):
        await Watcher(bus, source, options, elect, reporting).run(stop)


@contextlib.asynccontextmanager
async def _source(bus: Bus, options: WatcherOptions) -> AsyncIterator[tuple[Source, Elect | None, Reporting | None]]:
    """Each imported only when it is used: a directory needs no Kubernetes client, a cluster no file watcher."""
    if options.manifests is not None:
        from services.watcher.sources.directory import DirectorySource

        yield DirectorySource(options.manifests), None, None
        return
    from services.shared.kube.client import Api
    from services.shared.kube.lease import Leader, LeaseOptions
    from services.watcher.sources.kubernetes.source import KubernetesSource

    api = await Api.connect(options.kubeconfig, options.context)
    flags = options.flags
    lease = LeaseOptions(
        namespace=options.election_namespace,
        name=flags.election_id if flags.ingress_class == "nginx" else f"{flags.election_id}-{flags.ingress_class}",
        holder=options.name,
        seconds=flags.election_ttl,
    )
    leaders: list[Leader] = []

    async def elect(won: Told, lost: Told) -> None:
        leaders.append(Leader(api, lease, won=won, lost=lost))
        await leaders[0].run()

    try:
        if flags.disable_leader_election:
            yield KubernetesSource(api, flags), None, None  # without a leader nobody writes
        else:
            yield KubernetesSource(api, flags), elect, Reporting(StatusWriter(api, flags), EventWriter(api, bus, options.name))
    finally:
        for leader in leaders:
            await leader.release()
        await api.close()


def main(options: WatcherOptions) -> None:
    """A process of its own: SIGTERM and SIGINT end it."""

    async def connected(stop: asyncio.Event) -> None:
        async with JetStreamBus(options.bus, name=options.name) as bus:
            await serve(bus, options, stop)

    try:
        lifecycle.run("watcher", connected)
    except BadKeyFile as error:
        sys.exit(f"sluice watcher: {error}")
