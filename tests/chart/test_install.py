"""The example of docs/installation.md, installed: every pod of it runs as the chart says, and traffic flows."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest

from services.shared.kube.client import Api
from tests.chart.helm import CHART, Object, one, render
from tests.support.backends import backends
from tests.support.kube import KubeServer
from tests.support.objects import ingress
from tests.support.pods import Network, Pod, Pods

pytestmark = [pytest.mark.nats, pytest.mark.nginx, pytest.mark.cluster]

NAME: Final = "ingress-nginx"
INTERNAL: Final = {"ingressClassResource": {"controllerValue": "example.com/internal"}, "rollout": {"canaryNodes": ["edge-c"]}}
"""A second group of nodes."""


class Release:
    """What `helm install ingress-nginx charts/sluice --namespace ingress-nginx -f examples/edge-nodes.yaml` makes."""

    def __init__(self, kube: KubeServer, api: Api, pods: Pods) -> None:
        self.kube = kube
        self.api = api
        self.pods = pods
        values = {"groups": {"internal": INTERNAL}, "tcp": {"7000": "default/web:80"}}
        self.rendered = render(values, CHART / "examples" / "edge-nodes.yaml", release=NAME, namespace=NAME)
        self.edge: list[Pod] = []
        self.others: list[Pod] = []

    def workload(self, kind: str, name: str) -> Object:
        return one(self.rendered, kind, name)

    async def job(self, name: str) -> None:
        pod = await self.pods.run(self.workload("Job", name))
        assert await pod.ended() == 0, pod.log

    async def install(self) -> None:
        await self.kube.kubectl("create", "namespace", NAME)
        running = ("Job", "DaemonSet", "Deployment", "StatefulSet")
        await self.kube.apply(*(o for o in self.rendered if o["kind"] not in (*running, "ValidatingWebhookConfiguration")))
        await self.job(f"{NAME}-keys")
        await self.job(f"{NAME}-admission-create")
        nats = f"{NAME}-nats-0"
        await self.pods.run(self.workload("StatefulSet", f"{NAME}-nats"), name=nats, names=(f"{nats}.{NAME}-nats.{NAME}.svc",))
        for service in ("watcher", "watcher", "compiler", "compiler", "compiler-internal", "webhook"):
            self.others.append(await self.pods.run(self.workload("Deployment", f"{NAME}-{service}")))
        for node in ("edge-a", "edge-b"):
            self.edge.append(await self.pods.run(self.workload("DaemonSet", f"{NAME}-controller"), node=node))
        self.internal = await self.pods.run(self.workload("DaemonSet", f"{NAME}-internal-controller"), node="edge-c")
        for pod in (*self.others, *self.edge, self.internal):
            await self.until_ready(pod)
        await self._endpoint(self.others[-1])
        await self.kube.apply(*(o for o in self.rendered if o["kind"] == "ValidatingWebhookConfiguration"))
        await self.job(f"{NAME}-admission-patch")

    async def _endpoint(self, webhook: Pod) -> None:
        """As the controller of EndpointSlices makes it."""
        name = f"{NAME}-controller-admission"
        meta = {"name": name, "namespace": NAME, "labels": {"kubernetes.io/service-name": name}}
        port = {"name": "https-webhook", "port": 8443, "protocol": "TCP"}
        ready = {"addresses": [webhook.address], "conditions": {"ready": True}}
        slice_ = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4"}
        await self.kube.apply({**slice_, "ports": [port], "endpoints": [ready]})

    async def until_ready(self, pod: Pod) -> None:
        async with asyncio.timeout(60):
            while not await ready(pod):
                assert pod.process.poll() is None, pod.log
                await asyncio.sleep(0.1)

    async def command(self, *arguments: str) -> str:
        """In the pod that `command.enabled` makes: its log."""
        enabled = render({"command": {"enabled": True}}, CHART / "examples" / "edge-nodes.yaml", release=NAME, namespace=NAME)
        pod = await self.pods.run(one(enabled, "Deployment", f"{NAME}-command"), command=("sluice", *arguments))
        code = await pod.ended()
        assert code == 0, pod.log
        return pod.log


async def ready(pod: Pod) -> bool:
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as session,
            session.get(f"http://{pod.address}:10254{pod.probe['httpGet']['path']}") as answer,
        ):
            return answer.status == 200
    return False


@pytest.fixture
async def release(tmp_path: Path) -> AsyncIterator[Release]:
    with Network() as network:
        # So that webhooks are reached by their endpoints: nothing here routes a Service's address.
        async with KubeServer(tmp_path / "kube", address=network.address, more=("--enable-aggregator-routing=true",)) as kube:
            api = await kube.api()
            pods = Pods(kube, api, NAME, network, tmp_path)
            try:
                yield Release(kube, api, pods)
            finally:
                pods.end()
                await api.close()


def application(address: str, port: int) -> list[dict[str, Any]]:
    meta = {"name": "web", "namespace": "default"}
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**meta, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"port": port}],
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]}}
    return [service, slice_, ingress("web", {"web.example.com": {"/": "web"}})]


async def get(pod: Pod, host: str = "web.example.com", port: int = 80) -> int:
    headers = {"Host": host, "Connection": "close"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
        session.get(f"http://{pod.address}:{port}/", headers=headers) as answer,
    ):
        await answer.read()
        return answer.status


async def test_an_installed_release_serves_and_an_edge_pod_that_ends_loses_nothing(release: Release) -> None:
    await release.install()
    kube = release.kube
    address = kube.address
    with backends("web", address=address) as ports:
        await kube.apply(*application(address, ports["web"]))
        waited = msgspec.json.decode(await release.command("wait", "--for", "default/web", "--json"))
        assert waited["live"]
        assert [await get(pod) for pod in release.edge] == [200, 200]

        status = msgspec.json.decode(await release.command("status", "--json"))
        assert [n["node"] for n in status["nodes"]] == ["edge-a", "edge-b"]
        assert status["converged"]

        text = msgspec.json.encode(ingress("bad", {"bad.example.com": {"/": "web"}}, annotations={"limit-rps": "many"})).decode()
        said = await kube.kubectl("apply", "-f", "-", text=text, check=False)
        assert "limit-rps" in said and "denied the request" in said

        assert [await get(pod, port=7000) for pod in (*release.edge, release.internal)] == [200, 200, 200], "a TCP service"

        await _another_group_serves_its_own_class(release)
        await _retires_without_a_failure(release, address, ports["web"])

        before = (await kube.kubectl("get", "secrets", "-n", NAME, "-o", "jsonpath={.items[*].metadata.resourceVersion}")).split()
        await release.job(f"{NAME}-keys")
        after = (await kube.kubectl("get", "secrets", "-n", NAME, "-o", "jsonpath={.items[*].metadata.resourceVersion}")).split()
        assert before == after, "an upgrade leaves what is right"


async def _another_group_serves_its_own_class(release: Release) -> None:
    kube = release.kube
    own = ingress("inside", {"inside.example.com": {"/": "web"}})
    own["spec"]["ingressClassName"] = "internal"
    await kube.apply(own)
    async with asyncio.timeout(30):
        while await get(release.internal, "inside.example.com") != 200:
            await asyncio.sleep(0.1)
    assert await get(release.internal) == 404
    assert [await get(pod, "inside.example.com") for pod in release.edge] == [404, 404]

    service = f"{NAME}-internal-controller"
    address = await kube.kubectl("get", "service", service, "-n", NAME, "-o", "jsonpath={.spec.clusterIP}")
    path = "jsonpath={.status.loadBalancer.ingress[*].ip}"
    async with asyncio.timeout(30):
        while await kube.kubectl("get", "ingress", "inside", "-o", path) != address:
            await asyncio.sleep(0.2)
    assert await kube.kubectl("get", "ingress", "web", "-o", path) != address

    own["metadata"]["annotations"] = {"nginx.ingress.kubernetes.io/limit-rps": "many"}
    said = await kube.kubectl("apply", "-f", "-", text=msgspec.json.encode(own).decode(), check=False)
    assert "limit-rps" in said and "denied the request" in said


async def _retires_without_a_failure(release: Release, address: str, port: int) -> None:
    """Clients come by a load balancer that asks for readiness once a second, as real ones do."""
    leaving = release.edge[0]
    in_rotation = list(release.edge)
    answers: list[int] = []
    stop = asyncio.Event()

    async def balance() -> None:
        while not stop.is_set():
            in_rotation[:] = [pod for pod in release.edge if await ready(pod)]
            await asyncio.sleep(1.0)

    async def clients() -> None:
        while not stop.is_set():
            for pod in list(in_rotation):
                answers.append(await get(pod))
            await asyncio.sleep(0.01)

    async def slow_upload() -> bytes:
        """One that is under way when the signal comes, and takes longer than the grace period."""
        reader, writer = await asyncio.open_connection(leaving.address, 80)
        writer.write(b"POST / HTTP/1.1\r\nHost: web.example.com\r\nConnection: close\r\nContent-Length: 60\r\n\r\n")
        for _ in range(60):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.25)
        answer = await reader.read()
        writer.close()
        return answer

    tasks = [asyncio.create_task(t) for t in (balance(), clients())]
    upload = asyncio.create_task(slow_upload())
    await asyncio.sleep(1.5)
    leaving.signal(signal.SIGTERM)
    assert await leaving.ended(60) == 0, leaving.log
    assert (await upload).startswith(b"HTTP/1.1 200 ")
    before = len(answers)
    while len(answers) < before + 20:
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*tasks)
    assert set(answers) == {200}
    again = await release.pods.run(release.workload("DaemonSet", f"{NAME}-controller"), node="edge-a")
    await release.until_ready(again)
    assert await get(again) == 200
