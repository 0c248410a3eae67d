"""The whole product: start with 10,000 Ingresses, a file change until the next request sees it, admission."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.objects import INGRESS_CLASS, host, ingress_manifest, service_manifests
from tests.bench.results import Result, judged, percentile, reported
from tests.support.backends import backends
from tests.support.up import SluiceUp

INGRESSES = 10_000
CHANGES = 200
REVIEWS = 500
POLL_SECONDS = 0.004
"""Between two looks: a busy poller would take the core that the change needs."""


def _fill(up: SluiceUp, port: int) -> None:
    """A file an Ingress with its Service and slice, in a hundred directories."""
    (up.manifests / "class.json").write_text(json.dumps(INGRESS_CLASS))
    for i in range(INGRESSES):
        directory = up.manifests / f"team-{i % 100}"
        directory.mkdir(exist_ok=True)
        text = "\n---\n".join(json.dumps(o) for o in (*service_manifests(i, "127.0.0.1", port), ingress_manifest(i)))
        (directory / f"app-{i}.yaml").write_text(text)


def _new_host(up: SluiceUp, n: int) -> str:
    name = f"change-{n}.example.com"
    manifest = ingress_manifest(7)
    manifest["spec"]["rules"][0]["host"] = name
    manifest["metadata"]["name"] = "change"
    path = up.manifests / "change.yaml"
    temporary = path.with_name(".change.tmp")
    temporary.write_text(json.dumps(manifest))
    temporary.rename(path)
    return name


async def _change(session: aiohttp.ClientSession, up: SluiceUp, n: int) -> float:
    """Milliseconds from the renamed file to the first answer by the new route, on the last node."""
    began = time.perf_counter()
    name = await asyncio.to_thread(_new_host, up, n)
    while True:
        async with session.get(f"http://127.0.0.1:{up.http[-1]}/", headers={"Host": name}) as answer:
            if answer.status == 200:
                return (time.perf_counter() - began) * 1000
        await asyncio.sleep(POLL_SECONDS)


async def _changes(up: SluiceUp) -> list[float]:
    async with aiohttp.ClientSession() as session:
        times = []
        for n in range(CHANGES):
            times.append(await _change(session, up, n))
            await asyncio.sleep(0.1)
        return times


async def _reviews(up: SluiceUp) -> list[float]:
    webhook = up.up()["webhook"]
    context = ssl.create_default_context(cafile=webhook["ca"])
    times = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        for n in range(REVIEWS):
            manifest = ingress_manifest(n % INGRESSES)
            manifest["metadata"]["name"] = f"candidate-{n}"
            manifest["spec"]["rules"][0]["host"] = f"candidate-{n}.example.com"
            began = time.perf_counter()
            async with session.post(webhook["url"], json=_review(manifest)) as answer:
                response = (await answer.json())["response"]
            times.append((time.perf_counter() - began) * 1000)
            if not response["allowed"] or any("skipped" in w for w in response.get("warnings", [])):
                raise RuntimeError(f"not a full answer: {response}")
    return times


def _review(manifest: dict[str, Any]) -> dict[str, Any]:
    uid = "9c1f6f4e-7f7b-4b7e-9d4b-0e5a4c1c9a11"
    manifest["metadata"]["uid"] = uid
    request = {
        "uid": uid,
        "kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
        "resource": {"group": "networking.k8s.io", "version": "v1", "resource": "ingresses"},
        "namespace": manifest["metadata"]["namespace"],
        "name": manifest["metadata"]["name"],
        "operation": "CREATE",
        "object": manifest,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def whole() -> list[Result]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, backends("app") as ports:
        up = SluiceUp(Path(scratch))
        _fill(up, ports["app"])
        began = time.perf_counter()
        try:
            up.start(timeout=180)
            start = time.perf_counter() - began
            changes = asyncio.run(_changes(up))
            reviews = asyncio.run(_reviews(up))
            began = time.perf_counter()
            up.stop()
            up.start(timeout=180)
            again = time.perf_counter() - began
        finally:
            up.__exit__()
    p50, p99 = percentile(changes, 0.5), percentile(changes, 0.99)
    spread = f"{CHANGES} changes at {INGRESSES:,} Ingresses on 2 nodes, max {max(changes):.0f} ms"
    return [
        judged(
            f"`sluice up` with {INGRESSES:,} Ingresses to ready",
            start,
            "s",
            "<=",
            10,
            f"2 nodes; {host(0)} and 9,999 others, a file each with Service and slice",
        ),
        reported("the same after a stop, state kept", again, "s", "stop included"),
        judged("file change to next request, p50", p50, "ms", "<=", 50, spread),
        judged("file change to next request, p99", p99, "ms", "<=", 250, spread),
        judged(
            "admission answer, p99", percentile(reviews, 0.99), "ms", "<=", 20, f"{REVIEWS} in a row, p50 {percentile(reviews, 0.5):.1f} ms"
        ),
    ]
