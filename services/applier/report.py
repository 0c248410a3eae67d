"""What a node says of itself: its report (also the heartbeat), and one event for each version that goes live."""

from __future__ import annotations

import time

import msgspec

from services.applier.agent import Agent, Phases
from services.applier.options import ApplierOptions
from services.shared.bus.port import Bus, BusError
from services.shared.contracts.report import Applied, DeferredRow, NodeReport
from services.shared.contracts.subjects import NODES_BUCKET, applied_subject, token
from services.shared.contracts.version import Manifest
from services.shared.telemetry import tracing
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

DEFERRED_SHOWN = 100


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
        unloaded=tuple(sorted(agent.unloaded)),
        generation=agent.generation,
        ready=ready,
        head=agent.head.number,
        deferred=tuple(DeferredRow(key=k, policy=p) for k, p in sorted(agent.deferred.items())[:DEFERRED_SHOWN]),
        deferred_count=len(agent.deferred),
        refused=agent.refused,
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


async def send_report(bus: Bus, report: NodeReport) -> None:
    """Best effort: a node that cannot report goes on serving."""
    try:
        await bus.put(NODES_BUCKET, token(report.node), msgspec.json.encode(report))
    except BusError as error:
        log.debug("the report could not be sent", error=error)


async def send_applied(bus: Bus, node: str, manifest: Manifest, phases: Phases, deferred: int) -> None:
    """One version is live here: the event, and its spans."""
    trace = _spans(node, manifest, phases)
    applied = Applied(
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
        trace=trace,
    )
    try:
        await bus.publish(applied_subject(node), msgspec.json.encode(applied))
    except BusError as error:
        log.debug("the event could not be sent", error=error)


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
