"""The applier as a service: disk first, then the bus; versions in, reports out, nginx looked after all the time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Coroutine

import msgspec

from services.applier.agent import Agent, Phases
from services.applier.enrol import Enrolment
from services.applier.health import Health
from services.applier.keys import Keys
from services.applier.nginx import package_version
from services.applier.options import ApplierOptions
from services.applier.report import Reporter, node_report
from services.applier.resolve import REFRESH_SECONDS
from services.applier.rollout import follow_gate
from services.applier.watch import LOOK_SECONDS
from services.shared.bus.port import Bus, BusError, CaughtUp, Message, Reset
from services.shared.contracts import subjects
from services.shared.contracts.report import NodeReport
from services.shared.contracts.rollout import Gate
from services.shared.contracts.version import Manifest, VersionId, decode_manifest
from services.shared.telemetry import lifecycle
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

TICK_SECONDS = 0.25
FIRST_RETRY_SECONDS = 0.25
MOST_RETRY_SECONDS = 10.0
"""Between two tries to take a version that cannot be had: each twice as long as the one before."""


class Applier:
    """One node."""

    def __init__(self, bus: Bus, options: ApplierOptions, agent: Agent | None = None) -> None:
        self._bus = bus
        self._options = options
        self._agent = agent or Agent(options, bus)
        self._health = Health(self._agent, options)
        self._work: asyncio.Queue[Manifest | None] = asyncio.Queue()
        """None: nothing to take, but something to look at."""
        self._due = 0.0
        """When to look at nginx, and at what waits."""
        self._reporter = Reporter(bus, options.node, self._make_report)
        self._start_head: VersionId | None = None
        """The head when this applier caught up first: readiness means having applied it."""
        self._package = package_version()
        self._waiting: Manifest | None = None
        """The newest version that could not be taken, tried again."""
        self._retry_at = 0.0
        self._retry_seconds = FIRST_RETRY_SECONDS

    async def run(self, stop: asyncio.Event) -> None:
        self._agent.store.lock()
        runner = await self._health.serve()
        ended = asyncio.Event()
        try:
            await self._agent.start()
            work = (self._serve_bus(), self._apply(), self._reporter.run(), self._resolve(), self._watch(), self._retire(stop, ended))
            await lifecycle.until(ended, *work, *self._enrolling())
        finally:
            self._health.stopping = True
            await self._agent.stop()
            await asyncio.sleep(self._options.flags.post_shutdown_grace_period)
            await runner.cleanup()

    async def _retire(self, stop: asyncio.Event, ended: asyncio.Event) -> None:
        """Not ready any more, but at work for the grace period: requests come until the last load balancer has noticed."""
        await stop.wait()
        self._health.stopping = True
        self._reporter.changed()
        if self._options.flags.shutdown_grace_period:
            log.info("stopping; taking connections for a while", seconds=self._options.flags.shutdown_grace_period)
        await asyncio.sleep(self._options.flags.shutdown_grace_period)
        ended.set()

    def _enrolling(self) -> tuple[Coroutine[None, None, None], ...]:
        enrol = self._options.enrol
        return (Enrolment(self._options, enrol).run(lambda: self._bus.connected),) if enrol is not None else ()

    async def _serve_bus(self) -> None:
        """Versions from the bus, once there is one. Everything else goes on without it."""
        async with self._bus:
            await self._bus.ensure()
            keys = Keys(
                self._bus, self._options.node, self._options.group, self._options.directory, self._agent.ring, changed=self._retry_now
            )
            await lifecycle.until(asyncio.Event(), self._follow(), self._follow_gate(), keys.introduce(), keys.receive())

    async def _follow_gate(self) -> None:
        await follow_gate(self._bus, self._options.group, self._note_gate)

    def _note_gate(self, gate: Gate) -> None:
        """It may let something in."""
        self._agent.policies.gate, self._due = gate, 0.0
        self._work.put_nowait(None)

    def _retry_now(self) -> None:
        """Sealing keys have come: a version that waits for them may be had."""
        self._retry_at, self._retry_seconds = 0.0, FIRST_RETRY_SECONDS

    async def _follow(self) -> None:
        subject = subjects.config_subject(self._options.group)
        async with contextlib.aclosing(self._bus.follow(subjects.CONFIG_STREAM, subject, last_only=True)) as items:
            newest = VersionId(0, 0)
            async for item in items:
                if isinstance(item, Message):
                    try:
                        manifest = decode_manifest(item.payload)
                    except (msgspec.DecodeError, RecursionError) as error:
                        self._agent.fail(f"a version could not be read: {error}")
                        continue
                    newest = manifest.id
                    self._work.put_nowait(manifest)
                elif isinstance(item, CaughtUp):
                    self._start_head = self._start_head or newest
                    self._reporter.changed()
                elif isinstance(item, Reset):
                    log.warning("the version stream was lost; going on with what is applied", reason=item.reason)

    async def _apply(self) -> None:
        """The one task that changes the node: versions as they come, and a look at nginx in between."""
        while True:
            manifest = await self._next(max(0.0, self._due - time.monotonic()))
            if manifest is not None:
                await self._take(manifest)
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + TICK_SECONDS
                phases = await self._agent.tick()
                if phases is not None:
                    self._went_live(phases)
                if self._waiting is not None and manifest is None and time.monotonic() >= self._retry_at:
                    await self._take(self._waiting)
            self._settle()

    async def _next(self, timeout: float) -> Manifest | None:
        try:
            async with asyncio.timeout(timeout):
                manifest = await self._work.get()
        except TimeoutError:
            return None
        while not self._work.empty():  # newest wins; the deltas in between are fetched if they are missed
            following = self._work.get_nowait()
            if following is not None and manifest is not None and following.parent == manifest.digest:
                await self._take(manifest)
            manifest = following or manifest
        return manifest

    async def _take(self, manifest: Manifest) -> None:
        try:
            phases = await self._agent.take(manifest)
        except BusError as error:
            self._agent.fail(f"version {manifest.id} could not be fetched: {error}")
            phases = None
        behind = self._agent.lacks(manifest) and manifest.group == self._options.group
        self._retry_seconds = min(MOST_RETRY_SECONDS, self._retry_seconds * 2) if behind else FIRST_RETRY_SECONDS
        self._retry_at = time.monotonic() + self._retry_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - nodes must not ask in step
        self._waiting = manifest if behind else None
        if phases is not None:
            self._went_live(phases)
        self._reporter.changed()

    def _went_live(self, phases: Phases) -> None:
        manifest = self._agent.manifest
        if manifest is not None and phases.live_at:
            self._health.note(manifest, phases)
            self._reporter.live(manifest, phases, len(self._agent.deferred))

    def _settle(self) -> None:
        ready = self._start_head is not None and self._agent.live_id >= self._start_head and self._agent.healthy
        if ready and not self._health.ready:
            log.info("ready", version=self._agent.live_id)
            self._health.ready = True
            self._reporter.changed()

    def _make_report(self) -> NodeReport:
        ready = self._health.ready and self._agent.healthy and not self._health.stopping
        return node_report(self._agent, self._options, ready=ready, package=self._package)

    async def _resolve(self) -> None:
        live = self._agent.live
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await live.unresolved.wait()
            await live.resolve()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._agent.look_for_hangs()


async def serve(bus: Bus, options: ApplierOptions, stop: asyncio.Event, agent: Agent | None = None) -> None:
    """Apply until `stop`. `bus` is not entered yet: the node serves from its disk before it connects. `agent`: one made already."""
    await Applier(bus, options, agent).run(stop)
