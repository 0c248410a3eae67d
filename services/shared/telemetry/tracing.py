"""Spans through all hops, with W3C trace context in message headers (OpenTelemetry).

Without OTEL_EXPORTER_OTLP_ENDPOINT nothing is exported and spans cost only their ids: the reports carry the same times.
Spans are written after the fact, with explicit start and end: a hop knows its phases only when they are over.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags

HEADER: Final = "traceparent"
NANOSECONDS: Final = 1_000_000_000

_ids = RandomIdGenerator()
_tracer: trace.Tracer | None = None
"""None: nothing is exported."""


def configure(service: str, node: str = "") -> None:
    """Called once by each process. Exports when OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    global _tracer
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.name": f"sluice-{service}"} | ({"service.instance.id": node} if node else {})
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=500))
    atexit.register(provider.shutdown)
    _tracer = provider.get_tracer("sluice")


def record(
    name: str,
    *,
    start: float,
    end: float,
    parent: str = "",
    links: Iterable[str] = (),
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> str:
    """One finished span; returns its traceparent, for children and messages.

    `start` and `end` in unix seconds. `parent` and `links` are traceparents; ones that cannot be read are left out.
    """
    context = _context(parent)
    if _tracer is None:
        return _format(_identity(context))
    linked = [Link(c) for c in map(_context, links) if c is not None]
    span = _tracer.start_span(
        name,
        context=trace.set_span_in_context(NonRecordingSpan(context)) if context else None,
        links=linked,
        attributes=dict(attributes or {}),
        start_time=int(start * NANOSECONDS),
    )
    span.end(end_time=int(max(start, end) * NANOSECONDS))
    return _format(span.get_span_context())


def _identity(parent: SpanContext | None) -> SpanContext:
    """Of a span that nobody hears of; its children may be exported by another process."""
    flags = parent.trace_flags if parent else TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(parent.trace_id if parent else _ids.generate_trace_id(), _ids.generate_span_id(), is_remote=False, trace_flags=flags)


def _format(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _context(traceparent: str) -> SpanContext | None:
    parts = traceparent.split("-")
    if len(parts) != 4:
        return None
    try:
        context = SpanContext(int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=TraceFlags(int(parts[3], 16)))
    except ValueError:
        return None
    return context if context.is_valid else None
