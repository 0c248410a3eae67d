"""One change is one trace: from the file to each node, through every hop, as an OTLP collector receives it."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.backends import backends
from tests.support.objects import ingress, many, service
from tests.support.up import SluiceUp

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


class Collector:
    """A stub that keeps every span it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                collector.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def traces_with(self, *names: str, count: int) -> dict[bytes, list[Span]]:
        """Traces that have spans of all these names, the last of them `count` times."""
        by_trace: dict[bytes, list[Span]] = {}
        for span in self.spans:
            by_trace.setdefault(span.trace_id, []).append(span)
        return {
            t: spans
            for t, spans in by_trace.items()
            if set(names) <= {s.name for s in spans} and sum(s.name == names[-1] for s in spans) == count
        }


def test_one_change_is_one_trace_to_three_nodes(tmp_path: Path) -> None:
    with Collector().running() as collector, backends("web") as ports:
        up = SluiceUp(tmp_path, nodes=3, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        up.write("web.yaml", many(*service("web", [ports["web"]]), ingress("web", {"web.example.com": {"/": "web"}})))
        with up:
            collector.spans.clear()
            up.write("other.yaml", many(ingress("other", {"other.example.com": {"/": "web"}})))
            up.wait()
            deadline = time.monotonic() + 20
            while not (found := collector.traces_with("observed", "published", "compiled", "committed", "live", count=3)):
                assert time.monotonic() < deadline, sorted({s.name for s in collector.spans})
                time.sleep(0.05)
    spans = next(iter(found.values()))
    ids = {s.span_id for s in spans}
    assert [s.name for s in spans if s.parent_span_id not in ids] == ["observed"], "every other span hangs below the first"
    nodes = {a.value.string_value for s in spans if s.name == "live" for a in s.attributes if a.key == "node"}
    assert nodes == {"node-0", "node-1", "node-2"}
