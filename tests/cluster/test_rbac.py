"""The watcher works with exactly the rights that docs/kubernetes.md names, and each of them is needed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from services.shared.bus.jetstream import JetStreamBus
from services.shared.contracts.problem import Problem, Reason, Verdict
from services.shared.contracts.subjects import VERDICTS_BUCKET, verdict_key
from services.shared.flags import Flags
from services.shared.kube.client import Api, ApiError
from tests.cluster.test_watcher import Cell, application
from tests.support.kube import KubeServer
from tests.support.nats import NatsServer
from tests.support.objects import config_map
from tests.support.up import ROOT

pytestmark = [pytest.mark.nats, pytest.mark.cluster]

RBAC = "/apis/rbac.authorization.k8s.io/v1"
LEASES = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}


def documented() -> list[dict[str, Any]]:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    found = re.search(r"    apiVersion: rbac.*?(?=\n\n)", text, re.DOTALL)
    assert found is not None
    rules: list[dict[str, Any]] = yaml.safe_load(found[0])["rules"]
    return rules


class Restricted(Cell):
    """A cell whose watcher is a user with the documented rights."""

    user = ""

    def kubeconfig(self) -> Path:
        return self.kube.kubeconfig(self.user, ())


@contextlib.asynccontextmanager
async def restricted(kube: KubeServer, directory: Path, namespace: str, api: Api, rules: list[dict[str, Any]]) -> AsyncIterator[Restricted]:
    user = f"system:serviceaccount:{namespace}:watcher"
    subjects = [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]
    role = {"kind": "ClusterRole", "name": namespace, "apiGroup": "rbac.authorization.k8s.io"}
    await api.request("POST", f"{RBAC}/clusterroles", body={"metadata": {"name": namespace}, "rules": rules})
    await api.request("POST", f"{RBAC}/clusterrolebindings", body={"metadata": {"name": namespace}, "subjects": subjects, "roleRef": role})
    local = f"{RBAC}/namespaces/default"
    await api.request("POST", f"{local}/roles", body={"metadata": {"name": namespace}, "rules": [LEASES]})
    body = {"metadata": {"name": namespace}, "subjects": subjects, "roleRef": role | {"kind": "Role"}}
    await api.request("POST", f"{local}/rolebindings", body=body)
    async with NatsServer(directory / "nats") as server, JetStreamBus(server.url, name="test") as bus:
        await bus.ensure()
        made = Restricted(kube, bus, server.url, directory)
        made.user = user
        yield made
    for path in (f"{RBAC}/clusterrolebindings", f"{RBAC}/clusterroles", f"{local}/rolebindings", f"{local}/roles"):
        await api.request("DELETE", f"{path}/{namespace}")


@pytest.fixture
async def cell(kube: KubeServer, tmp_path: Path, namespace: str, api: Api) -> AsyncIterator[Restricted]:
    async with restricted(kube, tmp_path, namespace, api, documented()) as made:
        yield made


async def test_the_documented_rights_are_enough(cell: Restricted, namespace: str, api: Api) -> None:
    flags = Flags(
        publish_status_address="203.0.113.7", election_ttl=3.0, election_id=f"rbac-{namespace}", tcp_services_configmap=f"{namespace}/tcp"
    )
    maps = [{**config_map({"9000": "default/db:5432"}, name), "metadata": {"name": name, "namespace": namespace}} for name in ("tcp", "x")]
    async with cell.watcher(flags=flags):
        await cell.kube.apply(*application(namespace), *maps)
        await cell.barrier()
        found = await cell.published(namespace)
        assert ("Ingress", "web") in found
        assert ("ConfigMap", "tcp") in found and ("ConfigMap", "x") not in found, "only what flags name is read"
        assert await _reported(cell, namespace, api) == (True, True)


async def _reported(cell: Restricted, namespace: str, api: Api) -> tuple[bool, bool]:
    """Whether the Ingress gets its status, and an Event for what is wrong with it: within some seconds."""
    problem = Problem(reason=Reason.INVALID_ANNOTATION, field="metadata.annotations", message="wrong")
    verdict = Verdict(kind="Ingress", namespace=namespace, name="web", accepted=False, problems=(problem,))
    await cell.bus.put(VERDICTS_BUCKET, verdict_key("default", "Ingress", namespace, "web"), msgspec.json.encode(verdict))
    status = events = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(6):
            while not (status and events):
                path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses/web"
                status = bool(msgspec.json.decode(await api.request("GET", path))["status"].get("loadBalancer"))
                events = bool(msgspec.json.decode(await api.request("GET", f"/api/v1/namespaces/{namespace}/events"))["items"])
                await asyncio.sleep(0.1)
    return status, events


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/pods"),
        ("POST", "/api/v1/namespaces/default/secrets"),
        ("DELETE", "/api/v1/namespaces/default/services/kubernetes"),
        ("PUT", "/apis/networking.k8s.io/v1/namespaces/default/ingresses/x"),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/x"),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles"),
    ],
)
async def test_they_allow_nothing_else(cell: Restricted, method: str, path: str) -> None:
    api = await Api.connect(cell.kubeconfig())
    try:
        with pytest.raises(ApiError) as refused:
            await api.request(method, path, body={} if method in ("POST", "PUT") else None)
        assert refused.value.status == 403
    finally:
        await api.close()


@pytest.mark.parametrize("left_out", range(len(documented())))
async def test_without_any_one_of_them_something_is_missing(
    kube: KubeServer, tmp_path: Path, namespace: str, api: Api, left_out: int
) -> None:
    rules = documented()
    rule = rules.pop(left_out)
    flags = Flags(publish_status_address="203.0.113.7", election_ttl=3.0, election_id=f"rbac-{namespace}")
    async with restricted(kube, tmp_path, namespace, api, rules) as cell:
        await kube.apply(*application(namespace))
        async with cell.watcher(flags=flags, ready=False) as task:
            try:
                async with asyncio.timeout(8):
                    await cell.barrier(task)
                    works = True
            except TimeoutError:
                works = False
            if "list" in rule["verbs"]:
                assert not works
                return
            assert works
            writes_status = "ingresses/status" in rule["resources"]
            assert await _reported(cell, namespace, api) == (not writes_status, writes_status)
