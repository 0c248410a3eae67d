"""Changes in a cluster at a steady rate, and how long one kind of them takes from the API to the next request."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from multiprocessing.queues import Queue
from pathlib import Path

import aiohttp
from msgspec import Struct

from services.shared.kube.client import Api, KubeError
from tests.bench.cluster_objects import PATHS, Object, Size, endpoint_slice, namespace, path_of, tls_data
from tests.bench.objects import ingress_manifest

PATCH = "application/merge-patch+json"
MARKER = "marker.example.com"
MARKER_SECONDS = 0.25
"""Between two changes of the marker."""
POLL_SECONDS = 0.004
PATIENCE_SECONDS = 60
IN_FLIGHT = 64
CERTIFICATES = 20


class Plan(Struct, frozen=True, kw_only=True):
    """What changes, and how fast."""

    size: Size
    rate: float
    """A second, the marker's aside."""
    seconds: float
    port: int
    """Of the endpoints."""


class Done(Struct, frozen=True, kw_only=True):
    """What became of the changes."""

    written: int
    failed: int
    seconds: float


class Sample(Struct, frozen=True, kw_only=True):
    """One change of the marker: milliseconds since its request was sent."""

    answered: float
    """The API server has it."""
    sent_at: float
    """Unix seconds: to look for it in the logs."""
    served: float
    """The answer to the first request that the last node served by it."""


# --- the steady changes, in a process of their own


def change(plan: Plan, step: int, data: list[dict[str, str]]) -> tuple[str, Object]:
    """(path, patch): of ten changes seven are of endpoints, two of Ingresses (a path or a row's annotation), one of a Secret."""
    n = plan.size.ingresses
    i = 1 + (step * 7919) % (n - 1)  # the marker's backend is 0
    kind = step % 10
    if kind == 0 and plan.size.secrets > 1:
        i = 1 + i % (plan.size.secrets - 1)
        return f"{PATHS['Secret'].format(namespace(i))}/tls-{i}", {"data": data[step // 10 % len(data)]}
    if kind in (1, 2):
        patch = _ingress_patch(i, step, kind)
        return f"{PATHS['Ingress'].format(namespace(i))}/app-{i}", patch
    found = endpoint_slice(i, "b", f"10.2.{step // 250 % 250}.{1 + step % 250}", plan.port, ready=bool(step % 2))
    return f"{path_of(found)}/web-{i}-b", {"endpoints": found["endpoints"]}


def _ingress_patch(i: int, step: int, kind: int) -> Object:
    if kind == 1:
        return {"metadata": {"annotations": {"nginx.ingress.kubernetes.io/upstream-vhost": f"v{step}.example.com"}}}
    spec: Object = ingress_manifest(i)["spec"]
    spec["rules"][0]["http"]["paths"][2]["path"] = f"/static-{step}"
    return {"spec": {"rules": spec["rules"]}}


async def _change_all(kubeconfig: Path, plan: Plan) -> Done:
    api = await Api.connect(kubeconfig)
    data = [tls_data(1, serial) for serial in range(2, 2 + CERTIFICATES)]
    failed = written = 0
    free = asyncio.Semaphore(IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()

    async def one(path: str, patch: Object) -> None:
        nonlocal failed, written
        try:
            await api.request("PATCH", path, body=patch, content_type=PATCH)
            written += 1
        except KubeError as error:
            failed += 1
            print(f"  a change failed: {error}", flush=True)
        finally:
            free.release()

    began = time.monotonic()
    for step in range(int(plan.rate * plan.seconds)):
        await asyncio.sleep(max(0.0, began + step / plan.rate - time.monotonic()))
        await free.acquire()
        task = asyncio.create_task(one(*change(plan, step, data)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    took = time.monotonic() - began
    await api.close()
    return Done(written=written, failed=failed, seconds=took)


def _process(kubeconfig: Path, plan: Plan, out: Queue[Done]) -> None:
    out.put(asyncio.run(_change_all(kubeconfig, plan)))


# --- the marker


async def create_marker(api: Api) -> None:
    await api.request("POST", PATHS["Ingress"].format(namespace(0)), body=_marker("/m0"))


def _marker(path: str) -> Object:
    found = ingress_manifest(0)
    found["metadata"]["name"] = "marker"
    found["spec"]["rules"][0]["host"] = MARKER
    found["spec"]["rules"][0]["http"]["paths"] = [{**found["spec"]["rules"][0]["http"]["paths"][0], "path": path}]
    return found


async def served(session: aiohttp.ClientSession, port: int, path: str) -> None:
    """Until the node serves the marker at this path."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            async with session.get(f"http://127.0.0.1:{port}{path}", headers={"Host": MARKER}) as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(POLL_SECONDS)


async def _samples(api: Api, port: int, ended: asyncio.Event) -> AsyncIterator[Sample]:
    step = 0
    async with aiohttp.ClientSession() as session:
        while not ended.is_set():
            step += 1
            sent_at, began = time.time(), time.perf_counter()
            due = began + MARKER_SECONDS
            where = f"{PATHS['Ingress'].format(namespace(0))}/marker"
            # The write in a task: the change may be live before the API server's answer is here.
            writing = asyncio.create_task(_write(api, where, _marker(f"/m{step}")))
            await served(session, port, f"/m{step}")
            at = time.perf_counter()
            yield Sample(sent_at=sent_at, answered=(await writing - began) * 1000, served=(at - began) * 1000)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _write(api: Api, path: str, body: Object) -> float:
    await api.request("PATCH", path, body={"spec": body["spec"]}, content_type=PATCH)
    return time.perf_counter()


async def under_change(api: Api, kubeconfig: Path, port: int, plan: Plan) -> tuple[Done | None, list[Sample]]:
    """The marker's samples while `plan` runs (rate 0: while nothing else changes), on the node at `port`."""
    context = multiprocessing.get_context("spawn")
    out: Queue[Done] = context.Queue()
    ended = asyncio.Event()
    process = context.Process(target=_process, args=(kubeconfig, plan, out), daemon=True)
    samples: list[Sample] = []

    async def wait() -> Done | None:
        try:
            if not plan.rate:
                await asyncio.sleep(plan.seconds)
                return None
            process.start()
            return await asyncio.to_thread(out.get, timeout=plan.seconds * 3 + 60)
        finally:
            ended.set()

    waiting = asyncio.create_task(wait())
    try:
        async for sample in _samples(api, port, ended):
            samples.append(sample)
        return await waiting, samples
    finally:
        waiting.cancel()
        if process.pid is not None:
            process.kill()
            process.join()
