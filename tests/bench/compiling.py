"""The compiler alone: a full compile of many Ingresses, and what one change costs then."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from typing import Any

from services.compiler.engine import Engine
from services.shared.flags import Flags
from tests.bench.objects import delta, ingress_manifest, manifests, service_manifests
from tests.bench.results import Result, judged, percentile, reported

SIZES = (1_000, 10_000, 50_000)
CHANGES = 60


def _measure(n: int) -> dict[str, float]:
    """In a process of its own, so that peak memory is this size's."""
    deltas = [delta(m) for m in manifests(n)]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = Engine(Flags())
    started = time.perf_counter()
    for d in deltas:
        engine.apply(d)
    out = engine.compile()
    full = time.perf_counter() - started
    if len(out.upsert) < 2 * n:
        raise RuntimeError(f"{len(out.upsert)} rows for {n} Ingresses")
    times: list[float] = []
    for k in range(CHANGES):
        i = (k * 7919) % n
        change = delta(_changed(i, k), version=str(k + 2))
        started = time.perf_counter()
        engine.apply(change)
        rows = engine.compile().upsert
        times.append((time.perf_counter() - started) * 1000)
        if not rows:
            raise RuntimeError("a change changed nothing")
    return {
        "full": full,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "base": base * 1024.0,
        "change": statistics.median(times),
        "change_p99": percentile(times, 0.99),
    }


def _changed(i: int, k: int) -> dict[str, Any]:
    if k % 2:
        return service_manifests(i, f"127.0.0.{2 + k % 200}", 9000)[1]
    return ingress_manifest(i, {"upstream-vhost": f"v{k}.example.com"})


def compiling() -> list[Result]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        by_size = {n: pool.apply(_measure, (n,)) for n in SIZES}
    small, large = by_size[SIZES[0]], by_size[SIZES[-1]]
    results = [
        judged(
            f"one change compiled at {n:,} Ingresses",
            m["change"],
            "ms",
            "<=",
            5,
            f"median of {CHANGES} (Ingress and endpoint changes); p99 {m['change_p99']:.2f} ms",
        )
        for n, m in by_size.items()
    ]
    results.append(judged("one change, 50,000 against 1,000 Ingresses", large["change"] / small["change"], "x", "<=", 2))
    results.append(judged("full compile of 50,000 Ingresses", large["full"], "s", "<=", 30, "150,001 objects applied and compiled"))
    results.append(
        judged(
            "memory of the compiler at 50,000 Ingresses",
            large["peak"] / 1e9,
            "GB",
            "<=",
            2,
            f"peak; {large['base'] / 1e9:.2f} GB of it are the bench's own deltas",
        )
    )
    results.append(reported("full compile of 10,000 Ingresses", by_size[10_000]["full"], "s"))
    return results
