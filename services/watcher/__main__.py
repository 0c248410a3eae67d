"""The watcher's wiring: a directory of manifests or an API server in, the CLUSTER stream out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import Bus
from services.shared.sealing.keyfile import BadKeyFile
from services.shared.telemetry import lifecycle
from services.shared.telemetry.health import Health
from services.watcher.options import WatcherOptions
from services.watcher.service import Election, Watcher
from services.watcher.sources.port import Source

if TYPE_CHECKING:
    from services.watcher.status.reporting import Reporting

__all__ = ["WatcherOptions", "main", "serve"]


async def serve(bus: Bus, options: WatcherOptions, stop: asyncio.Event, health: Health | None = None) -> None:
    """Watch and publish on a connected bus until `stop`."""
    async with _source(bus, options) as (source, election, reporting):
        watcher = Watcher(bus, source, options, election, reporting)
        if health is not None:
            health.watch(watcher.unready, watcher.samples)
        await watcher.run(stop)


@contextlib.asynccontextmanager
async def _source(bus: Bus, options: WatcherOptions) -> AsyncIterator[tuple[Source, Election | None, Reporting | None]]:
    """Each imported only when it is used: a directory needs no Kubernetes client, a cluster no file watcher."""
    if options.manifests is not None:
        from services.watcher.sources.directory import DirectorySource

        yield DirectorySource(options.manifests), None, None
        return
    from services.shared.kube.client import Api
    from services.shared.kube.lease import Leader, LeaseOptions
    from services.watcher.registrar import Registrar
    from services.watcher.sources.kubernetes.source import KubernetesSource
    from services.watcher.status.reporting import Reporting

    api = await Api.connect(options.kubeconfig, options.context)
    flags = options.flags
    lease = LeaseOptions(
        namespace=options.election_namespace,
        name=flags.election_id if flags.ingress_class == "nginx" else f"{flags.election_id}-{flags.ingress_class}",
        holder=options.name,
        seconds=flags.election_ttl,
    )
    leader = Leader(api, lease)
    try:
        if options.registrar is not None:
            await Registrar(bus, api, options.registrar).serve()
        if flags.disable_leader_election:
            yield KubernetesSource(api, flags, *options.groups.values()), None, None  # without a leader nobody writes
        else:
            yield KubernetesSource(api, flags, *options.groups.values()), leader, Reporting(api, bus, options)
    finally:
        await leader.release()
        await api.close()


def main(options: WatcherOptions) -> None:
    """A process of its own: SIGTERM and SIGINT end it."""

    async def connected(stop: asyncio.Event) -> None:
        health = Health("watcher")
        async with health.listening(options.health_port), JetStreamBus(options.bus, name=options.name) as bus:
            await serve(bus, options, stop, health)

    try:
        lifecycle.run("watcher", connected)
    except (BadKeyFile, OSError) as error:
        sys.exit(f"sluice watcher: {error}")
