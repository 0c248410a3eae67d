"""A service's health port: `/healthz` (it lives), `/readyz` (it can do its work), `/metrics`. It needs no bus."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import psutil
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

Samples = Mapping[str, float | Mapping[str, float]]
"""Name without `sluice_<service>_` -> its value, or one value for each `kind`."""


class Health:
    """Of one process. Until `watch` is called it is not ready."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._ready: Callable[[], str] = lambda: "not connected to NATS yet"
        self._samples: Callable[[], Samples] = dict
        self._process = psutil.Process()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def watch(self, ready: Callable[[], str], samples: Callable[[], Samples]) -> None:
        """`ready` says why not, or nothing."""
        self._ready, self._samples = ready, samples

    @contextlib.asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[None]:
        """While the context lasts; port 0: not at all. Raises OSError where the port is taken."""
        if not port:
            yield
            return
        app = web.Application()
        app.add_routes([web.get("/healthz", self._healthz), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, port).start()
            yield
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, _: web.Request) -> web.Response:
        words = self._ready()
        return web.Response(status=503, text=f"{words}\n") if words else web.Response(text="ok")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=generate_latest(self._registry).decode(), content_type="text/plain", charset="utf-8")

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield GaugeMetricFamily(f"sluice_{self._service}_ready", "1: it can do its work", value=float(not self._ready()))
        memory = self._process.memory_info().rss
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory", value=float(memory))
        for name, value in self._samples().items():
            if isinstance(value, Mapping):
                family = GaugeMetricFamily(f"sluice_{self._service}_{name}", name, labels=["kind"])
                for kind, of_kind in value.items():
                    family.add_metric([kind], float(of_kind))
                yield family
            else:
                yield GaugeMetricFamily(f"sluice_{self._service}_{name}", name, value=float(value))
