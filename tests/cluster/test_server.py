"""The API server that the other tests rely on: it stores, watches, refuses, forgets and comes back as a cluster's does."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from services.shared.kube.client import Api, ApiError, Unreachable
from tests.support.kube import KubeServer
from tests.support.objects import ingress

pytestmark = pytest.mark.cluster


def _path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps{f'/{name}' if name else ''}"


async def _create(api: Api, namespace: str, name: str = "a") -> str:
    """Its resourceVersion."""
    made = await api.request("POST", _path(namespace), body={"metadata": {"name": name}, "data": {"n": "0"}})
    return str(msgspec.json.decode(made)["metadata"]["resourceVersion"])


async def _set(api: Api, namespace: str, n: int, name: str = "a") -> None:
    await api.request("PATCH", _path(namespace, name), body={"data": {"n": str(n)}}, content_type="application/merge-patch+json")


async def _first_event(api: Api, namespace: str, version: str) -> dict[str, Any]:
    """Of a watch from this resourceVersion."""
    lines = api.lines(_path(namespace), query={"watch": "1", "resourceVersion": version}, silence=30)
    try:
        event: dict[str, Any] = msgspec.json.decode(await anext(lines))
    finally:
        await lines.aclose()
    return event


async def _list(api: Api, namespace: str, query: dict[str, str]) -> dict[str, str]:
    """Name -> `n`."""
    found = msgspec.json.decode(await api.request("GET", _path(namespace), query=query))
    return {item["metadata"]["name"]: item["data"]["n"] for item in found["items"]}


async def test_create_get_and_watch(kube: KubeServer, namespace: str) -> None:
    made = await kube.apply(ingress("web", {"a.example.com": {"/": "web"}}, namespace=namespace))
    assert "ingress.networking.k8s.io/web created" in made
    columns = "jsonpath={.spec.rules[0].host} {.metadata.labels.n}{'\\n'}"
    assert await kube.kubectl("get", "-n", namespace, "ingress/web", "-o", columns) == "a.example.com \n"

    watch = await kube.start_kubectl("get", "-n", namespace, "ingress/web", "--watch", "-o", columns)
    try:
        assert watch.stdout is not None
        async with asyncio.timeout(60):
            assert await watch.stdout.readline() == b"a.example.com \n"
            await kube.kubectl("label", "-n", namespace, "ingress/web", "n=1")
            assert await watch.stdout.readline() == b"a.example.com 1\n"
    finally:
        watch.kill()
        await watch.communicate()


async def test_what_a_cluster_would_refuse_is_refused(kube: KubeServer, namespace: str) -> None:
    bad = ingress("web", {"not a host": {"/": "web"}}, namespace=namespace)
    with pytest.raises(AssertionError, match=r"spec.rules\[0\].host"):
        await kube.apply(bad)


async def test_a_user_may_do_what_a_role_says(kube: KubeServer, namespace: str) -> None:
    account = f"system:serviceaccount:{namespace}:watcher"
    listing = ("--kubeconfig", str(kube.kubeconfig(account, ())), "-n", namespace, "get", "services", "-o", "name")
    assert f'User "{account}" cannot list resource "services"' in await kube.kubectl(*listing, check=False)

    await kube.kubectl("create", "-n", namespace, "role", "reader", "--verb=get,list", "--resource=services")
    await kube.kubectl("create", "-n", namespace, "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:watcher")
    async with asyncio.timeout(30):  # the authoriser learns of it by a watch of its own
        while "Forbidden" in await kube.kubectl(*listing, check=False):
            pass
    assert await kube.kubectl(*listing) == ""
    elsewhere = ("--kubeconfig", str(kube.kubeconfig(account, ())), "-n", "default", "get", "services")
    assert "Forbidden" in await kube.kubectl(*elsewhere, check=False)


async def test_nobody_in_particular_gets_in(kube: KubeServer, namespace: str) -> None:
    config = ("--kubeconfig", "/dev/null", "--server", kube.url, "--certificate-authority", str(kube.ca))
    refused = await kube.kubectl(*config, "--token", "made-up", "-n", namespace, "get", "services", check=False)
    assert "Unauthorized" in refused


async def test_after_compaction_and_restart_history_is_gone(kube: KubeServer, namespace: str, api: Api) -> None:
    version = await _create(api, namespace, "a")
    await _create(api, namespace, "b")
    page = msgspec.json.decode(await api.request("GET", _path(namespace), query={"limit": "1"}))
    rest = {"limit": "1", "continue": page["metadata"]["continue"]}
    for n in (1, 2, 3):
        await _set(api, namespace, n)
    event = await _first_event(api, namespace, version)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "b")
    await kube.restart()  # its cache is gone; etcd still knows
    assert await _list(api, namespace, {"resourceVersion": version, "resourceVersionMatch": "Exact"}) == {"a": "0"}
    assert await _list(api, namespace, rest) == {"b": "0"}

    await kube.compact()
    await kube.restart()
    event = await _first_event(api, namespace, version)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    for query in ({"resourceVersion": version, "resourceVersionMatch": "Exact"}, rest):
        with pytest.raises(ApiError) as expired:
            await _list(api, namespace, query)
        assert (expired.value.status, expired.value.reason) == (410, "Expired")
    assert await _list(api, namespace, {}) == {"a": "3", "b": "0"}


async def test_killed_and_started_again_it_has_everything(kube: KubeServer, namespace: str, api: Api) -> None:
    version = await _create(api, namespace)
    await kube.kill()
    with pytest.raises(Unreachable):
        await api.request("GET", _path(namespace, "a"))
    await kube.start()
    found = msgspec.json.decode(await api.request("GET", _path(namespace, "a")))
    assert (found["data"], found["metadata"]["resourceVersion"]) == ({"n": "0"}, version)


async def test_stopped_it_answers_nothing_and_then_goes_on(kube: KubeServer, namespace: str, api: Api) -> None:
    await _create(api, namespace)
    kube.stop()
    try:
        late = asyncio.create_task(api.request("GET", _path(namespace, "a")))
        with pytest.raises(Unreachable):
            await api.request("GET", _path(namespace, "a"), timeout=1)
        assert not late.done()
    finally:
        kube.cont()
    assert msgspec.json.decode(await late)["data"] == {"n": "0"}
