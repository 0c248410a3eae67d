"""The healthz port: `/healthz`, `/readyz`, `/metrics`. ingress-nginx's metric names where they mean the same, Sluice's own beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psutil
from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from services.applier.agent import Agent, Phases
from services.applier.options import ApplierOptions
from services.shared.contracts.version import Manifest

PREFIX = "nginx_ingress_controller_"
_SAMPLE = re.compile(r"^([a-z_]+)\{(.*)\} (\S+)$")


class Health:
    """The endpoints of one applier."""

    def __init__(self, agent: Agent, options: ApplierOptions) -> None:
        self._agent = agent
        self._options = options
        self.ready = False
        self.stopping = False
        self._registry = CollectorRegistry()
        self._propagation = Histogram(
            "sluice_propagation_seconds",
            "From one stage of a version to the next",
            ["phase"],
            registry=self._registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self._registry.register(_Collector(agent, options))

    def note(self, manifest: Manifest, phases: Phases) -> None:
        """A version went live: how long each phase took."""
        observed = [c.observed_at for c in manifest.causes if c.observed_at]
        steps = (
            ("commit", min(observed, default=0), manifest.committed_at),
            ("receive", manifest.committed_at, phases.received_at),
            ("verify", phases.received_at, phases.verified_at),
            ("load", phases.verified_at, phases.loaded_at),
            ("live", phases.verified_at, phases.live_at),
            ("total", min(observed, default=0), phases.live_at),
        )
        for name, start, end in steps:
            if start and end:
                self._propagation.labels(name).observe(max(0.0, end - start))

    async def serve(self) -> web.AppRunner:
        """Start listening. Raises OSError where the port is taken."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/healthz/{check}", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self._options.address or None, self._options.healthz_port).start()
        return runner

    async def _healthz(self, request: web.Request) -> web.Response:
        if request.match_info.get("check") == "ping":
            return web.Response(text="ok")
        if self.stopping or not self._agent.healthy:
            why = "stopping" if self.stopping else self._agent.last_error or "nginx has no configuration yet"
            return web.Response(status=500, text=f"{why}\n")
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self.ready and not self.stopping and self._agent.healthy:
            return web.Response(text="ok")
        return web.Response(status=503, text="the head seen at start is not applied yet\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        text = generate_latest(self._registry).decode()
        if self._options.flags.enable_metrics:
            text += _requests(await self._agent.control.metrics(), self._labels())
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    def _labels(self) -> str:
        flags = self._options.flags
        return f'controller_namespace="",controller_class="{flags.controller_class}",controller_pod="{self._options.node}"'


def _requests(samples: str, constant: str) -> str:
    """The Lua counters under their full names, with the labels that are the same for all of a node."""
    out = []
    seen: set[str] = set()
    for line in samples.splitlines():
        found = _SAMPLE.match(line)
        if not found:
            continue
        name = re.sub(r"_(bucket|sum|count)$", "", found[1])
        if name not in seen:
            seen.add(name)
            out.append(f"# TYPE {PREFIX}{name} {'counter' if name == 'requests' else 'histogram'}")
        out.append(f"{PREFIX}{found[1]}{{{constant},{found[2]}}} {found[3]}")
    return "\n".join(out) + "\n" if out else ""


class _Collector:
    """Gauges and counters read from the agent at each scrape."""

    def __init__(self, agent: Agent, options: ApplierOptions) -> None:
        self._agent = agent
        self._names = ["controller_namespace", "controller_class", "controller_pod"]
        self._values = ["", options.flags.controller_class, options.node]
        self._metrics = options.flags.enable_metrics

    def collect(self) -> Iterator[Metric]:
        agent = self._agent
        yield self._gauge("config_last_reload_successful", "Whether the last reload took", float(agent.last_reload_ok))
        yield self._gauge("config_last_reload_successful_timestamp_seconds", "When the last reload took", agent.last_reload_at)
        digest = agent.replica.digest
        live = agent.live_id
        yield self._gauge("config_hash", "The version's digest", float(int(digest[:12] or "0", 16)) if agent.last_reload_ok else 0.0)
        good = sum(n for cause, n in agent.reloads.items() if cause != "revert")
        yield self._counter("success", "Reloads that took", good)
        yield self._counter("errors", "Reloads that did not take", agent.failed_reloads)
        version = GaugeMetricFamily("sluice_version", "The version that is live", labels=["part"])
        version.add_metric(["epoch"], live.epoch)
        version.add_metric(["number"], live.number)
        yield version
        yield GaugeMetricFamily("sluice_head_version_number", "The newest version seen", value=agent.head.number)
        yield GaugeMetricFamily("sluice_deferred_rows", "Rows that wait for a policy", value=len(agent.deferred))
        yield GaugeMetricFamily("sluice_refused_policies", "Policies that nginx refused", value=len(agent.policies.refused))
        yield GaugeMetricFamily("sluice_rows", "Rows in shared memory", value=len(agent.live.rows))
        yield GaugeMetricFamily("sluice_table_memory_bytes", "Size of the rows' shared memory", value=agent.settings.tables_bytes)
        used = sum(len(k) + len(v) for k, v in agent.live.rows.items())
        yield GaugeMetricFamily("sluice_table_content_bytes", "Bytes of the rows themselves", value=used)
        reloads = CounterMetricFamily("sluice_reloads", "Reloads by cause", labels=["cause"])
        for cause, count in sorted(agent.reloads.items()):
            reloads.add_metric([cause], count)
        yield reloads
        if self._metrics:
            yield from self._processes()

    def _processes(self) -> Iterator[Metric]:
        pid = self._agent.nginx.pid
        try:
            master = psutil.Process(pid)
            all_processes = [master, *master.children()]
            resident = sum(p.memory_info().rss for p in all_processes)
            virtual = sum(p.memory_info().vms for p in all_processes)
            cpu = sum(sum(p.cpu_times()[:2]) for p in all_processes)
            oldest = min(p.create_time() for p in all_processes)
        except (psutil.Error, ValueError):
            return
        yield self._gauge("nginx_process_num_procs", "nginx processes", len(all_processes))
        yield self._gauge("nginx_process_resident_memory_bytes", "Resident memory", resident)
        yield self._gauge("nginx_process_virtual_memory_bytes", "Virtual memory", virtual)
        yield self._gauge("nginx_process_oldest_start_time_seconds", "Start of the oldest process", oldest)
        yield self._counter("nginx_process_cpu_seconds", "CPU seconds", cpu)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(PREFIX + name, text, labels=self._names)
        metric.add_metric(self._values, value)
        return metric

    def _counter(self, name: str, text: str, value: float) -> Metric:
        metric = CounterMetricFamily(PREFIX + name, text, labels=self._names)
        metric.add_metric(self._values, value)
        return metric
