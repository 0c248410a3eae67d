"""What a node says of itself: its report (also the heartbeat), and one event for each version that goes live."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from services.applier.agent import Agent, Phases
from services.applier.options import ApplierOptions
from services.shared.bus.port import Bus, BusError
from services.shared.contracts.report import Applied, DeferredRow, NodeReport
from services.shared.contracts.subjects import HEARTBEAT_SECONDS, NODES_BUCKET, applied_subject, bucket_subject, token
from services.shared.contracts.version import Manifest
from services.shared.telemetry import tracing
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

DEFERRED_SHOWN = 100
SPREAD_SECONDS: Final = 0.0004
"""For each node of the group: a thousand that all report the version they have just heard of would be in the way of those that have not."""
MOST_SPREAD_SECONDS: Final = 1.0
BETWEEN_SECONDS: Final = 0.02
"""At least, between two reports."""
EVENTS_KEPT: Final = 256
"""As many as the stream keeps of a node."""


def node_report(agent: Agent, options: ApplierOptions, *, ready: bool, package: str) -> NodeReport:
    live = agent.live_id
    digest = agent.replica.digest if live == agent.replica.id else ""
    return NodeReport(
        node=options.node,
        group=options.group,
        at=time.time(),
        epoch=live.epoch,
        number=live.number,
        digest=digest if live.epoch else "",
        policy_digest=agent.manifest.policy_digest if agent.manifest else "",
        unloaded=tuple(sorted(agent.policies.unloaded)),
        generation=agent.generation,
        ready=ready,
        head=agent.head.number,
        deferred=tuple(DeferredRow(key=k, policy=p) for k, p in sorted(agent.deferred.items())[:DEFERRED_SHOWN]),
        deferred_count=len(agent.deferred),
        refused=agent.policies.refused,
        reloads=dict(agent.reloads),
        last_error=agent.last_error,
        last_error_at=agent.last_error_at,
        last_good=str(live) if live.epoch else "",
        nginx_version=package,
        nginx_pid=agent.nginx.pid,
        http_port=options.http_port,
        https_port=options.https_port,
        health_port=options.healthz_port,
    )


class Reporter:
    """Sends reports and events beside the node's work: a bus that does not answer holds nothing up."""

    def __init__(self, bus: Bus, node: str, report: Callable[[], NodeReport]) -> None:
        """`report`: the node's, as it is now."""
        self._bus = bus
        self._node = node
        self._report = report
        self._news = asyncio.Event()
        self._events: deque[Applied] = deque(maxlen=EVENTS_KEPT)
        self._nodes = 1
        """Of the group."""

    def changed(self) -> None:
        """The report is another one now."""
        self._news.set()

    def live(self, manifest: Manifest, phases: Phases, deferred: int) -> None:
        """A version is live here."""
        self._nodes = manifest.nodes
        self._events.append(_event(self._node, manifest, phases, deferred))
        self._news.set()

    async def run(self) -> None:
        """Report what is new soon, and that the node lives."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._news.wait()
                await asyncio.sleep(random.uniform(0, min(MOST_SPREAD_SECONDS, self._nodes * SPREAD_SECONDS)))  # noqa: S311 - no secret
            self._news.clear()
            if self._bus.connected:
                await self._send()
            await asyncio.sleep(BETWEEN_SECONDS)

    async def _send(self) -> None:
        """Events first: who sees a version in the report finds its event. Best effort: a node that cannot report goes on serving."""
        events = list(self._events)
        self._events.clear()
        try:
            for event in events:
                await self._bus.tell(applied_subject(self._node), msgspec.json.encode(event))
            await self._bus.tell(bucket_subject(NODES_BUCKET, token(self._node)), msgspec.json.encode(self._report()))
        except BusError as error:
            log.debug("a report or an event could not be sent", error=error)


def _event(node: str, manifest: Manifest, phases: Phases, deferred: int) -> Applied:
    """With its spans."""
    return Applied(
        node=node,
        epoch=manifest.epoch,
        number=manifest.number,
        digest=manifest.digest,
        received_at=phases.received_at,
        verified_at=phases.verified_at,
        tested_at=phases.tested_at,
        loaded_at=phases.loaded_at,
        live_at=phases.live_at,
        reload=phases.reload,
        deferred_count=deferred,
        trace=_spans(node, manifest, phases),
    )


def _spans(node: str, manifest: Manifest, phases: Phases) -> str:
    attributes = {"node": node, "version": str(manifest.id)}
    end = max(phases.live_at, phases.loaded_at, phases.verified_at)
    trace = tracing.record("applied", start=phases.received_at, end=end, parent=manifest.trace, attributes=attributes)
    at = phases.received_at
    for name, finish in (
        ("received", phases.verified_at),
        ("tested", phases.tested_at),
        ("loaded", phases.loaded_at),
        ("live", phases.live_at),
    ):
        if finish:
            tracing.record(name, start=min(at, finish), end=finish, parent=trace, attributes=attributes)
            at = finish
    return trace
